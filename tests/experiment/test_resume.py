"""A run stopped at any instant goes on and ends bit-equal to one that was not disturbed, times aside."""

import pytest

from fed_distill.errors import CheckpointError
from fed_distill.merchant.app import build_app
from fed_distill.reporting.callbacks import Callback
from fed_distill.transport.requests import TRAIN

FEDERATIONS = {
    "server optimizer": {"controls": ["server"], "federation.aggregator": "fedadam"},
    "merchants' own students": {
        "controls": [],
        "federation.method": "fedmd",
        "federation.options": {},
        "student.by_merchant": ["two-tower", "lstm"],
    },
    "levels and two teachers, stopping early": {
        "controls": ["server"],
        "federation.patience": 1,
        "training.augmentation.deletion": 0.2,
        "teacher.ensemble": [{"seed": 1}],
        "distill.transfer": ["probabilities", "relations"],
        "distill.assistants": [{"model": "lstm", "options": {"rows": 512, "width": 8}, "epochs": 0.5}],
    },
    "mentors of merchants": {
        "controls": [],
        "federation.method": "fedkd",
        "federation.options": {},
        "student.by_merchant": ["two-tower", "lstm"],
    },
    "control variates at both": {
        "controls": [],
        "training.merchants.optimizer": "sgd",
        "federation.method": "scaffold",
        "federation.options": {},
    },
    "a teacher that learns": {"controls": [], "federation.method": "fedmkt", "federation.options": {}},
    "class means at the server": {"controls": [], "federation.method": "fd", "federation.options": {}},
}


SECRET = "5e4be4" * 10


class Stopped(BaseException):
    """Stands for a signal: no code that catches errors may catch it."""


class StopAt(Callback):
    """Notes each stage and round, and stops the run at the given one."""

    def __init__(self, place=None):
        self.place, self.seen = place, []

    def on_stage(self, title, total):
        self._note(title)

    def on_round(self, record):
        self._note(f"round {record['round']}")

    def _note(self, event):
        self.seen.append(event)
        if len(self.seen) - 1 == self.place:
            raise Stopped(event)


@pytest.fixture(scope="module", params=FEDERATIONS, ids=lambda name: name.replace(" ", "-"))
def undisturbed(request, tiny_experiment, simulate, outcome_of, tmp_path_factory):
    """Changes of the experiment, what happened in an undisturbed run of it, and how it ended at 1 and at 3 sites
    (whose cohorts, and so the order of float summation, are not the same)."""
    changes = {**FEDERATIONS[request.param], "federation.rounds": 3}
    ends = {}
    for sites in (1, 3):
        watcher = StopAt()
        experiment = tiny_experiment(tmp_path_factory.mktemp("whole"), changes)
        folder, _ = simulate(experiment, sites=sites, callbacks=[watcher])
        ends[sites] = outcome_of(folder)
    return changes, watcher.seen, ends


def test_stopped_at_every_stage_and_round(undisturbed, tiny_experiment, simulate, outcome_of, tmp_path):
    """One run, stopped at each event in turn: every resumption gets one event further. Once finished it resumes to
    itself without training."""
    changes, events, ends = undisturbed
    assert [event for event in events if event.startswith("round")] == ["round 1", "round 2", "round 3"]
    experiment = tiny_experiment(tmp_path, changes)
    stops = 0
    for event in events:
        resumed = experiment.with_changes({"runtime.resume": stops > 0})
        watcher = StopAt()
        watcher._note = lambda seen, wanted=event: _stop(seen, wanted)
        try:
            simulate(resumed, callbacks=[watcher])
        except Stopped:
            stops += 1
    assert stops == len(set(events))
    for _ in ("its end", "once more"):
        folder, grid = simulate(experiment.with_changes({"runtime.resume": True}))
        assert outcome_of(folder) == ends[1]
    assert TRAIN not in [kind for kind, _, _ in grid.wire]


def _stop(seen, wanted):
    if seen == wanted:
        raise Stopped(seen)


def test_stopped_after_every_round_it_has_waited_as_long_for_a_better_one(
    tiny_experiment, simulate, outcome_of, tmp_path
):
    """At a rate at which it can only get worse, patience of 2 ends both runs two rounds after their best."""
    changes = {
        "controls": [],
        "adaptation.enabled": False,
        "federation.rounds": 8,
        "federation.patience": 2,
        "training.merchants.learning_rate": 3.0,
    }
    watcher = StopAt()
    whole, _ = simulate(tiny_experiment(tmp_path / "whole", changes), callbacks=[watcher])
    rounds = [event for event in watcher.seen if event.startswith("round")]
    assert 3 <= len(rounds) < 8
    experiment = tiny_experiment(tmp_path / "stopped", changes)
    for number, event in enumerate(rounds):
        stopping = StopAt()
        stopping._note = lambda seen, wanted=event: _stop(seen, wanted)
        with pytest.raises(Stopped):
            simulate(experiment.with_changes({"runtime.resume": number > 0}), callbacks=[stopping])
    resumed, _ = simulate(experiment.with_changes({"runtime.resume": True}))
    assert outcome_of(resumed) == outcome_of(whole)


@pytest.mark.parametrize("message", [2, 5])
def test_stopped_while_merchants_train(undisturbed, tiny_experiment, simulate, outcome_of, tmp_path, message):
    """Three sites: some have trained, and kept their students, when the run is stopped in the middle of a round."""
    changes, _, ends = undisturbed
    experiment = tiny_experiment(tmp_path, changes)
    inner, trained = build_app(), []

    def app(request, context):
        reply = inner(request, context)
        trained.append(request.metadata.message_type == TRAIN)
        if sum(trained) == message:
            raise Stopped
        return reply

    with pytest.raises(Stopped):
        simulate(experiment, app=app, sites=3)
    folder, _ = simulate(experiment.with_changes({"runtime.resume": True}), sites=3)
    assert outcome_of(folder) == ends[3]


@pytest.mark.parametrize("damage", ["lost", "digit"])
def test_a_real_federation_whose_name_was_lost_is_not_gone_on_from(tiny_experiment, simulate, tmp_path, damage):
    """Its merchants have paid for it by a random name, which is in ``released.json`` alone."""
    changes = {"controls": [], "federation.rounds": 3, "privacy.unit": "merchant", "privacy.noise_multiplier": 1.0}
    experiment = tiny_experiment(tmp_path, changes)
    watcher = StopAt()
    watcher._note = lambda seen: _stop(seen, "round 1")
    with pytest.raises(Stopped):
        simulate(experiment, callbacks=[watcher], secret=SECRET)
    path = tmp_path / experiment.name / "released.json"
    if damage == "lost":
        path.unlink()
    else:
        path.write_text(path.read_text(encoding="utf-8").replace('"round": 1', '"round": 0'), encoding="utf-8")
    told = "belongs to another federation" if damage == "lost" else r"released\.json cannot be used: its checksum"
    with pytest.raises(CheckpointError, match=told):
        simulate(experiment.with_changes({"runtime.resume": True}), secret=SECRET)


def test_a_run_is_not_gone_on_from_with_other_data(tiny_experiment, simulate, tmp_path):
    """A table that was edited in between would mix results of two data sets; the old table put back goes on."""
    path = tmp_path / "grades.csv"
    rows = [
        f"hub {row % 7} {merchant},usb hub {row},{('exact', 'irrelevant')[row % 2]},shop {merchant}"
        for merchant in range(6)
        for row in range(60)
    ]
    whole = "\n".join(["query,title,grade,shop", *rows, ""])
    path.write_text(whole)
    columns = {"text": "query", "pair": "title", "label": "grade", "merchant": "shop"}
    changes = {
        "controls": ["server"],
        "data.dataset": "table",
        "data.options": {"path": str(path), "columns": columns},
        "adaptation.enabled": False,
    }
    experiment = tiny_experiment(tmp_path / "runs", changes)
    stopping = StopAt()
    stopping._note = lambda seen: _stop(seen, "round 1")
    with pytest.raises(Stopped):
        simulate(experiment, callbacks=[stopping])
    resumed = experiment.with_changes({"runtime.resume": True})
    path.write_text(whole.replace("usb hub 7,", "hdmi cable 7,"))
    with pytest.raises(CheckpointError, match=r"grades.csv has changed since the run in .* began"):
        simulate(resumed)
    files = tmp_path / "runs" / experiment.name / "checkpoint" / "files.json"
    named = files.read_text()
    files.unlink()  # as of an earlier release
    with pytest.raises(CheckpointError, match="began with other data"):
        simulate(resumed)
    files.write_text(named)
    path.write_text(whole)
    simulate(resumed)
