"""``fed-distill experiments`` lists and copies the files of ``experiments/``."""

from pathlib import Path

import pytest

from fed_distill.config import Experiment
from fed_distill.experiment.shipped import experiments
from fed_distill.sweeps.grid import Study

ROOT = Path(__file__).parents[2]


def test_every_experiment_is_listed_with_its_command(entered, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = entered("experiments", "ls")
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:] if line[:1].strip()}
    assert code == 0
    assert set(rows) == {path.stem for path in (ROOT / "experiments").glob("*.toml")}
    assert (rows["quickstart"], rows["methods"], rows["tune"]) == ("run", "study", "tune")


def test_every_experiment_says_what_it_is_about():
    assert [one.name for one in experiments() if not one.summary] == []


def test_a_copy_is_complete_and_replaces_nothing(entered, tmp_path):
    code, out, _ = entered("experiments", "cp", "quickstart", "--to", tmp_path / "mine")
    copied = tmp_path / "mine" / "quickstart.toml"
    assert code == 0
    assert f"run it: fed-distill run {copied}" in out
    assert Experiment.read(copied) == Experiment.read(ROOT / "experiments" / "quickstart.toml")
    copied.write_text("mine = 1", encoding="utf-8")
    code, _, errors = entered("experiments", "cp", "quickstart.toml", "--to", tmp_path / "mine")
    assert (code, copied.read_text(encoding="utf-8")) == (2, "mine = 1")
    assert "replace it with --force" in errors
    assert entered("experiments", "cp", "quickstart", "--to", tmp_path / "mine", "--force")[0] == 0


@pytest.mark.parametrize("name", ["privacy_accuracy", "methods_tuned"])
def test_a_study_is_copied_with_the_files_that_it_is_based_on(entered, tmp_path, name):
    assert entered("experiments", "cp", name, "--to", tmp_path)[0] == 0
    assert Study.read(tmp_path / f"{name}.toml") == Study.read(ROOT / "experiments" / f"{name}.toml")


def test_an_unknown_name_is_one_line_with_the_nearest(entered):
    code, _, errors = entered("experiments", "cp", "quickstrat")
    assert code == 2
    assert "there is no experiment 'quickstrat'; did you mean quickstart" in errors
