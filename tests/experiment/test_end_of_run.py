"""A run that is killed between its last files: each is whole or missing, and resuming gives the same ones.

``summary.json``, which marks a finished run, comes last: no run with figures is without its student or its report.
"""

import pytest

from fed_distill import load_student
from fed_distill.data import load
from fed_distill.errors import CheckpointError
from fed_distill.experiment import run
from fed_distill.reporting.disagreements import DISAGREEMENTS, read_disagreements
from fed_distill.reporting.report import write_report
from fed_distill.reporting.store import CLASSES, REPORT, STUDENT, SUMMARY, RunStore, read_summary
from fed_distill.reporting.unit_scores import UNIT_SCORES

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


@pytest.mark.parametrize("last", [CLASSES, UNIT_SCORES, STUDENT, DISAGREEMENTS, REPORT, SUMMARY])
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
    if last in (DISAGREEMENTS, REPORT, SUMMARY):
        assert files_of(folder) == files_of(whole)
        assert (folder / STUDENT / "README.md").is_file(), "its figures are in its card too"
        found, expected = (load_student(one).rank(*QUERY) for one in (folder, whole))
        assert (found.scores == expected.scores).all()
    assert (folder / REPORT).exists() == (last == SUMMARY)
    with pytest.raises(CheckpointError, match="the run is not finished; continue it with --resume"):
        read_summary(folder)
    assert simulate(experiment.with_changes({"runtime.resume": True}))[0] == folder
    assert outcome_of(folder) == outcome_of(whole)
    assert files_of(folder) == files_of(whole)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_the_report_of_a_run_is_the_one_that_its_files_give(whole):
    written = (whole / REPORT).read_bytes()
    assert write_report(whole).read_bytes() == written


def test_a_run_lists_as_many_disagreements_as_it_is_told(whole, tiny_experiment, simulate, tmp_path):
    assert 'id="disagreements"' in (whole / REPORT).read_text(encoding="utf-8")
    folder, _ = simulate(tiny_experiment(tmp_path, {**CHANGES, "runtime.disagreements": 3}))
    assert len(read_disagreements(folder).examples) == 3
    again = {**CHANGES, "runtime.disagreements": 0, "runtime.resume": True}
    simulate(tiny_experiment(tmp_path, again))
    assert read_disagreements(folder) is None
    assert 'id="disagreements"' not in (folder / REPORT).read_text(encoding="utf-8")


def test_only_texts_of_the_proxy_set_are_listed(whole, tiny_experiment, tmp_path):
    data = load(tiny_experiment(tmp_path, CHANGES).data)
    public = set(zip(data.proxy.texts, data.proxy.pairs, strict=True))
    found = read_disagreements(whole)
    assert {(one.text, one.pair) for one in found.examples} <= public
    assert found.proxy == len(data.proxy)
