"""``fed-distill tune``: from a file to the best experiment, and a mistake in one line."""

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fed_distill.cli import tune as tune_command
from fed_distill.cli.main import app
from fed_distill.config import Experiment
from fed_distill.sweeps.runner import Runner
from fed_distill.sweeps.space import Tuning

ROOT = Path(__file__).parents[2]
FILE = """
name = "small"
trials = 2

[base.training.merchants]
learning_rate = 1e-3

[[search]]
key = "training.merchants.learning_rate"
low = 1e-3
high = 1e-1
log = true
"""


@pytest.fixture
def command(entered, monkeypatch):
    """A function that runs ``fed-distill tune`` as the entry point does: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "sweeps" / "tuning"))

    def run(*arguments, function="run"):
        monkeypatch.setattr(tune_command, "SIMULATE", f"sham_trials:{function}")
        return entered("tune", *arguments)

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_the_help_has_an_example():
    shown = CliRunner().invoke(app, ["tune", "--help"])
    assert shown.exit_code == 0
    assert "Example: fed-distill tune experiments/" in " ".join(shown.output.split())


def test_a_tuning_ends_in_a_table_and_an_experiment(command, file, tmp_path):
    out = tmp_path / "out"
    code, shown, errors = command(file, "--out", out, "--set", "trials=3", "--parallel", 2)
    assert code == 0
    assert "4 runs; at most 2 at a time" in errors
    lines = shown.splitlines()
    assert lines[0].split() == ["trial", "learning_rate", "nDCG@10"]
    assert lines[4].split() == ["base", "–", "0.8000"]
    assert f"best settings: {out / 'best.toml'}" in shown
    assert Experiment.read(out / "best.toml").name == "small-best"
    code, again, errors = command(file, "--out", out, "--set", "trials=3", "--report-only")
    assert (code, again) == (0, shown)


def test_what_is_set_wins_over_tiny(file):
    tuning = Tuning.read(file, {"trials": 9, "seeds": 2, "federation.rounds": 7})
    quick = tuning.tiny()
    assert (quick.trials, quick.seeds, quick.base.federation.rounds) == (3, 1, 2)
    kept = tuning.tiny(["trials", "seeds", "federation.rounds"])
    assert (kept.trials, kept.seeds, kept.base.federation.rounds) == (9, 2, 7)
    assert kept.base.data == quick.base.data


def test_tiny_leaves_as_many_trials_as_are_set(command, file, monkeypatch, tmp_path):
    started = []

    def interrupted(self):
        started.append(self.sampler.tuning)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    for settings in ([], ["--set", "trials=5", "--set", "federation.rounds=7"]):
        command(file, "--out", tmp_path / "out", "--tiny", *settings)
    assert [(one.trials, one.base.federation.rounds) for one in started] == [(2, 2), (5, 7)]


def test_merchants_that_are_elsewhere_are_not_tuned(command, file, tmp_path):
    settings = ["--set", "data.clients=elsewhere", "--set", "controls=[]"]
    for options in ([], ["--tiny"]):
        code, out, errors = command(file, "--out", tmp_path / "out", *settings, *options)
        assert (code, out) == (2, "")
        (line,) = errors.strip().splitlines()
        assert "data.clients = 'elsewhere' has no merchants to simulate" in line
        assert not (tmp_path / "out").exists()


def test_without_a_complete_trial_the_exit_code_is_1(command, file, tmp_path):
    settings = ["--set", "base.x=1"]
    code, _, errors = command(file, "--out", tmp_path / "out", *settings)
    assert (code, "unknown key" in errors) == (2, True)
    narrow = FILE.replace("1e-3\nhigh = 1e-1", "3e-2\nhigh = 1e-1").replace(
        "learning_rate = 1e-3", "learning_rate = 1e-2"
    )
    file.write_text(narrow, encoding="utf-8")
    code, shown, _ = command(file, "--out", tmp_path / "out", function="fail_if_bad")
    assert code == 1
    assert "no trial is complete: the loss is nan" in shown


def test_a_private_base_is_refused_before_any_runs(command, file, tmp_path):
    private = ["--set", "privacy.unit=example", "--set", "privacy.epsilon=8"]
    code, _, errors = command(file, "--out", tmp_path / "out", *private, "--set", "trials=1")
    assert code == 2
    assert "privacy.unit = 'example' cannot be tuned" in " ".join(errors.split())
    assert not (tmp_path / "out").exists()


def test_an_end_of_a_search_that_no_run_could_take_is_named_before_any_runs(command, file, tmp_path):
    method = '\n[[search]]\nkey = "federation.method"\nvalues = ["fedavg", "fedavgg"]\n'
    file.write_text(FILE + method, encoding="utf-8")
    code, _, errors = command(file, "--out", tmp_path / "out")
    assert code == 2
    assert "search method = fedavgg" in errors
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_how_to_go_on(command, file, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    code, _, errors = command(file, "--out", tmp_path / "out")
    assert code == 130
    assert "continue with the same command" in errors


def test_without_optuna_it_says_what_to_install(command, file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, errors = command(file)
    assert code == 2
    assert "pip install 'fed-distill[tune]'" in errors
