"""What trains nothing does not wait for what trains: Flower, Opacus, torch and transformers take seconds to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.ledger import Charge, Ledgers

ROOT = Path(__file__).parents[2]
HEAVY = ("flwr", "opacus", "torch", "transformers")
IN_TURN = f"""
import json, sys
from typer.testing import CliRunner
from fed_distill.cli.main import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    imported = [name for name in {(*HEAVY, "numpy")!r} if name in sys.modules]
    print(json.dumps([done.exit_code, done.output, imported]))
"""


def shown_in_turn(*commands):
    """Exit code, output, and what of the heavy libraries has been imported by then, of each command in one process."""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([sys.executable, "-c", IN_TURN, words], capture_output=True, text=True, cwd=ROOT, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_help_imports_nothing_heavy_and_names_every_group_of_commands():
    groups = ("data", "experiments", "ledger", "sites")
    helps = shown_in_turn(["--help"], *([group, "--help"] for group in groups))
    assert [(code, imported) for code, _, imported in helps] == [(0, [])] * 5
    assert all(group in helps[0][1] for group in groups)


@pytest.fixture
def ledger(tmp_path):
    """A folder of ledgers with one charge."""
    ledgers = Ledgers(tmp_path / "ledgers")
    spends = (Spend(1.2, 0.1, 10),)
    ledgers.of("acme").charge(Charge("run", "fedavg", 0, 1, "example", "training", "1", spends, 1e-5))
    return ledgers.folder


def test_looking_at_experiments_and_datasets_and_verifying_ledgers_imports_nothing_that_trains(ledger):
    commands = [
        ["config", "experiments/quickstart.toml"],
        ["data", "list"],
        ["ledger", "verify", ledger],
        ["experiments", "ls"],
        ["keys", "federation.rounds"],
    ]
    for command, (code, shown, imported) in zip(commands, shown_in_turn(*commands), strict=True):
        assert code == 0, shown
        assert not set(imported) & set(HEAVY), command


AT_THE_IMPORT = f"""
import sys, types
from fed_distill.cli.main import main

class Simulation(types.ModuleType):
    def __getattr__(self, name):
        if name == "run":
            print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
            sys.exit()
        raise AttributeError(name)

sys.modules["fed_distill.experiment.simulation"] = Simulation("simulation")
main()
"""


@pytest.mark.parametrize("logs", ["text", "json"])
def test_a_run_says_what_it_does_before_it_imports_what_trains(logs):
    words = ["run", "experiments/quickstart.toml", "--set", f"runtime.logs={logs}"]
    done = subprocess.run([sys.executable, "-c", AT_THE_IMPORT, *words], capture_output=True, text=True, cwd=ROOT)
    said = ["run quickstart: loading libraries and the data (marketplace)"] if logs == "text" else []
    assert done.stderr.splitlines() == [*said, "[]"]
