"""Every experiment file runs from the command to its report, in its tiny version."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fed_distill.config import Experiment

ROOT = Path(__file__).parents[2]
STUDIES = [
    ROOT / "experiments" / f"{name}.toml"
    for name in (
        "privacy_accuracy",
        "privacy_marketplace",
        "privacy_audit",
        "label_worth",
        "methods",
        "carry_over",
        "catalogue",
        "categories",
        "quickstart_seeds",
        "cold_start",
        "clicks",
        "features",
        "transfer",
        "domains",
        "german",
        "byzantine",
        "shop",
        "shop_private",
    )
]
TUNED = [ROOT / "experiments" / f"{name}.toml" for name in ("methods_tuned", "quickstart_tuned", "transfer_tuned")]
TUNINGS = [ROOT / "experiments" / "tune.toml"]
EXPERIMENTS = sorted(set((ROOT / "experiments").glob("*.toml")) - {*STUDIES, *TUNED, *TUNINGS})
NEEDS_DOWNLOAD = {"pricerunner.toml", "scarce_labels.toml", "transport.toml", "chain.toml"}

pytestmark = pytest.mark.e2e


def command_of(kind, path, settings):
    command = [sys.executable, "-m", "fed_distill.cli.main", kind, str(path), "--tiny"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    return command


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_to_its_report(path, tmp_path):
    if path.name in NEEDS_DOWNLOAD and "FED_DISTILL_DATA" not in os.environ:
        pytest.skip("FED_DISTILL_DATA does not point to the data set")
    settings = {"runtime.folder": tmp_path / "runs", "runtime.cache": tmp_path / "cache", "runtime.threads": 1}
    done = subprocess.run(command_of("run", path, settings), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / f"{path.stem}-tiny"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["controls"]) == set(Experiment.read(path).controls)
    assert summary["bytes"]["uplink_per_merchant_round"] > 0
    assert (-1 if summary["headline"] == "qini" else 0) <= summary["student"][summary["headline"]] <= 1
    for name in (
        "report.html",
        "experiment.toml",
        "metrics.jsonl",
        "classification_report.txt",
        "student/model.safetensors",
    ):
        assert (folder / name).stat().st_size > 0
    assert str(folder / "report.html") in done.stdout


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_a_grid_of_runs_that_can_be_made(path, tmp_path):
    """All cells are checked, none is run: a tiny study is run in ``tests/cli/test_study.py``."""
    command = [*command_of("study", path, {"runtime.cache": tmp_path / "cache"}), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    cells = int(done.stdout.split(" cells")[0].split()[-1])
    assert cells >= 3  # two values of an axis, and their controls
    assert "to run" in done.stdout


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_a_study_of_tuned_rows_plans_trials_and_cells(path, tmp_path):
    """None is run: tiny ones are in ``tests/sweeps/study/test_row_tuning.py``."""
    command = [*command_of("study", path, {"runtime.cache": tmp_path / "cache"}), "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    planned = re.search(r"(\d+) trials, 0 of them finished;\s+(\d+) cells", done.stdout)
    assert planned, done.stdout
    trials, cells = (int(count) for count in planned.groups())
    assert trials >= 2 * (cells - 1)  # a row's cells have two trials or more; controls have a cell of their own


@pytest.mark.parametrize("path", TUNINGS, ids=lambda path: path.stem)
def test_a_tuning_ends_in_an_experiment(path, tmp_path):
    command = [*command_of("tune", path, {"runtime.cache": tmp_path / "cache"}), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert Experiment.read(tmp_path / "out" / "best.toml").name == "tune-best"
    assert (tmp_path / "out" / "figures" / "settings.png").stat().st_size > 0
