"""The table of what retraining costs is what the ledger computes for the server's example."""

import re
from pathlib import Path

from fed_distill.config import Experiment
from fed_distill.merchant.allowance import run_exposure

ROOT = Path(__file__).parents[2]


def test_the_cost_of_retraining_is_that_of_the_ledger():
    page = (ROOT / "docs" / "how-to" / "maintenance.md").read_text(encoding="utf-8")
    table = re.search(r"^\| ε of a run (?:.*\n)+?\n", page, re.MULTILINE)[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    runs = [int(name.split()[0]) for name in header[1:]]
    experiment = Experiment.read(ROOT / "server" / "experiment.toml")
    assert [row[0] for row in rows] == ["4", "2", "1"]
    for epsilon, *shown in rows:
        private = experiment.with_changes({"privacy.epsilon": float(epsilon)})
        assert shown == [f"{run_exposure(private, 1, 1, times):.3g}" for times in runs]
