"""A federation may have any title that no other row of the tables has: nothing on disk is named like another thing."""

import json
import shutil

import pytest

from fed_distill.audit.finished_run import audit_run
from fed_distill.errors import CheckpointError
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.versions import CHECKPOINT_LAYOUT

TITLES = ("..", "personal", "personal of ..", "server.two-tower", "ä" * 99)
CHANGES = {
    "controls": ["server", "local", "fedavg"],
    "federation.rounds": 2,
    "federation.label": TITLES[0],
    "compare": [{"label": title} for title in TITLES[1:]],
    "adaptation.personal": True,
}


class Stopped(BaseException):
    """Stands for a signal."""


class StopIn(Callback):
    """Stops a run after the first round of a federation."""

    def __init__(self, title):
        self.title = title

    def on_round(self, record):
        if (record["federation"], record["round"]) == (self.title, 1):
            raise Stopped


@pytest.fixture(scope="module")
def whole(tiny_experiment, simulate, tmp_path_factory):
    """The folder of an undisturbed run."""
    return simulate(tiny_experiment(tmp_path_factory.mktemp("whole"), CHANGES))[0]


def test_a_run_stopped_in_each_of_them_ends_as_one_that_was_not(whole, tiny_experiment, simulate, outcome_of, tmp_path):
    experiment = tiny_experiment(tmp_path, CHANGES)
    for number, title in enumerate(TITLES):
        with pytest.raises(Stopped):
            simulate(experiment.with_changes({"runtime.resume": number > 0}), callbacks=[StopIn(title)])
    folder, _ = simulate(experiment.with_changes({"runtime.resume": True}))
    found = outcome_of(folder)
    assert found == outcome_of(whole)
    assert list(found["summary"]["federations"]) == list(TITLES)
    assert [(line["federation"], line["round"]) for line in found["rounds"]] == [
        (title, number) for title in ("fedavg", *TITLES) for number in (1, 2)
    ]
    assert [path.name for path in tmp_path.iterdir()] == [experiment.name]


def test_each_has_a_folder_and_its_merchants_have_students_of_their_own(whole):
    kept = whole / "checkpoint" / "seed-0"
    assert {path.name: len([*path.iterdir()]) for path in kept.iterdir()} == {
        "server": 2,  # with and without a teacher
        "controls": 3,
        "federations": len(TITLES),
    }
    for folder in (kept / "federations").iterdir():
        assert {path.name for path in folder.iterdir()} == {"rounds.safetensors", "final.safetensors", "outcome.json"}
    personal = [*(whole / "checkpoint" / "sites" / "seed-0").iterdir()]
    assert len(personal) == len(TITLES) and all(len([*folder.iterdir()]) == 5 for folder in personal)


@pytest.mark.parametrize("name", ["outcome.json", "final.safetensors", "rounds.safetensors"])
def test_a_file_of_another_seed_is_not_taken_for_ones_own(tiny_experiment, simulate, tmp_path, name):
    changes = {"controls": [], "federation.rounds": 1, "adaptation.enabled": False, "repeats": 2}
    folder, _ = simulate(tiny_experiment(tmp_path, changes))
    own, other = (folder / "checkpoint" / seed / "federations" / "fedavg-kd" for seed in ("seed-0", "seed-1"))
    shutil.copy(other / name, own / name)
    if name == "rounds.safetensors":
        (own / "outcome.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is not of federation fedavg-kd on seed 0"):
        simulate(tiny_experiment(tmp_path, {**changes, "runtime.resume": True}))


def test_a_run_of_the_layout_before_is_neither_resumed_nor_audited(whole, tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(tmp_path, {**CHANGES, "runtime.resume": True})
    folder = tmp_path / experiment.name
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoint" / "seed-0")
    (folder / "checkpoint" / "LAYOUT").unlink()
    before = folder / "checkpoint" / "seed-0" / "fedavg-kd.safetensors"
    before.parent.mkdir()
    before.write_bytes(b"")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    for use in (lambda: simulate(experiment), lambda: audit_run(folder, Callback())):
        with pytest.raises(CheckpointError, match=rf"LAYOUT does not say {CHECKPOINT_LAYOUT}: .* version .* --name"):
            use()
    assert (folder / "metrics.jsonl").read_text(encoding="utf-8") == lines
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["name"] == experiment.name
