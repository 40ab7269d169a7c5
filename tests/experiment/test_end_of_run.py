"""A run that is killed between its last files: each is whole or missing, and resuming gives the same ones.

The student comes before ``summary.json``, which marks a finished run: no run with figures is without its student.
"""

import pytest

from fed_distill import load_student
from fed_distill.errors import CheckpointError
from fed_distill.experiment import run
from fed_distill.reporting.query_scores import QUERY_SCORES
from fed_distill.reporting.store import CLASSES, REPORT, STUDENT, SUMMARY, RunStore, read_summary

CHANGES = {"controls": [], "federation.rounds": 1, "adaptation.enabled": False}
QUERY = ("red phone", ["red phone 5", "blue shoe"])


class Killed(BaseException):
    """Stands for a signal: no code that catches errors may catch it."""


def files_of(folder):
    """Contents of a student's folder; of its card, which has durations, nothing."""
    return {path.name: path.read_bytes() for path in (folder / STUDENT).iterdir() if path.suffix != ".md"}


@pytest.fixture(scope="module")
def whole(tiny_experiment, simulate, tmp_path_factory):
    """The folder of a run that nobody killed."""
    return simulate(tiny_experiment(tmp_path_factory.mktemp("whole"), CHANGES))[0]


def kill(*_):
    raise Killed


@pytest.mark.parametrize("last", [CLASSES, QUERY_SCORES, STUDENT, SUMMARY, REPORT])
def test_a_run_killed_before_a_file_has_all_earlier_ones_and_resumes_to_the_same(
    last, whole, tiny_experiment, simulate, outcome_of, tmp_path, monkeypatch
):
    experiment = tiny_experiment(tmp_path, CHANGES)
    folder, write = tmp_path / whole.name, RunStore.write
    with monkeypatch.context() as patch:
        if last == STUDENT:
            patch.setattr(RunStore, "save_student", kill)
        elif last == REPORT:
            patch.setattr(run, "write_report", kill)
        else:
            patch.setattr(
                RunStore, "write", lambda store, name, text: (kill if name == last else write)(store, name, text)
            )
        with pytest.raises(Killed):
            simulate(experiment)
    if last in (SUMMARY, REPORT):
        assert files_of(folder) == files_of(whole)
        assert (folder / STUDENT / "README.md").is_file(), "its figures are in its card too"
        found, expected = (load_student(one).rank(*QUERY) for one in (folder, whole))
        assert (found.scores == expected.scores).all()
    if last == REPORT:
        assert read_summary(folder)["schema"] == read_summary(whole)["schema"]
    else:
        with pytest.raises(CheckpointError, match="the run is not finished; continue it with --resume"):
            read_summary(folder)
    assert simulate(experiment.with_changes({"runtime.resume": True}))[0] == folder
    assert outcome_of(folder) == outcome_of(whole)
    assert files_of(folder) == files_of(whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
