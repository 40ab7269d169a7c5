"""Callbacks are found by name, told everything in order, and closed whatever happens."""

import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.reporting.callbacks import CALLBACKS, Callback, CallbackList, TensorBoard, WeightsAndBiases, scalars
from fed_distill.reporting.terminal_progress import ProgressBars

EXPERIMENT = Experiment(name="trial")
SUMMARY = {
    "retention": 0.9,
    "gap_closed": None,
    "student": {"auc": 0.9},
    "teacher": {},
    "bytes": {},
    "data": {"rows": 3},
}


def record(round, federation="fedavg-kd", seed=0, auc=0.9):
    return {
        "seed": seed,
        "federation": federation,
        "round": round,
        "rounds": 3,
        "train_loss": 0.5 / round,
        "valid": {"auc": auc, "ndcg@10": None},
        "bytes": {"uplink": 1000},
        "merchants": 4,
        "rejected": 0,
        "seconds": 1.5,
    }


class Recorder(Callback):
    """Writes down what it is told."""

    def __init__(self, name="recorder", told=None):
        self.name, self.told = name, [] if told is None else told

    def on_start(self, experiment, folder):
        self.told.append((self.name, "start", experiment.name, folder))

    def on_stage(self, title, total):
        self.told.append((self.name, "stage", title, total))

    def on_step(self, done, metrics):
        self.told.append((self.name, "step", done, metrics))

    def on_round(self, record):
        self.told.append((self.name, "round", record["round"]))

    def on_message(self, text):
        self.told.append((self.name, "message", text))

    def on_end(self, summary):
        self.told.append((self.name, "end", summary))

    def close(self):
        self.told.append((self.name, "close"))


class NeedsArguments(Callback):
    def __init__(self, path):
        self.path = path


class NotACallback:
    pass


@pytest.fixture
def own_module(monkeypatch):
    parts = SimpleNamespace(Recorder=Recorder, NeedsArguments=NeedsArguments, NotACallback=NotACallback)
    monkeypatch.setitem(sys.modules, "my_callbacks", parts)


def test_all_callbacks_are_told_everything_in_order(tmp_path):
    told = []
    with CallbackList([Recorder("a", told), Recorder("b", told)]) as callbacks:
        callbacks.on_start(EXPERIMENT, tmp_path)
        callbacks.on_stage("teacher", 3)
        callbacks.on_step(1, {"loss": 0.5})
        callbacks.on_round(record(2))
        callbacks.on_message("hello")
        callbacks.on_end(SUMMARY)
    events = [
        ("start", "trial", tmp_path),
        ("stage", "teacher", 3),
        ("step", 1, {"loss": 0.5}),
        ("round", 2),
        ("message", "hello"),
        ("end", SUMMARY),
    ]
    expected = [(name, *event) for event in events for name in "ab"]
    assert told == [*expected, ("b", "close"), ("a", "close")]


def test_callbacks_are_closed_when_the_run_fails():
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="diverged"), CallbackList([recorder]):
        raise RuntimeError("diverged")
    assert recorder.told == [("recorder", "close")]


def test_callbacks_are_closed_after_one_that_cannot_be():
    class Unreachable(Callback):
        def close(self):
            raise ConfigError("no server")

    recorder = Recorder()
    with pytest.raises(ConfigError, match="no server"), CallbackList([recorder, Unreachable()]):
        pass
    assert recorder.told == [("recorder", "close")]


def test_built_in_and_own_callbacks_are_found_by_name(own_module):
    names = ["progress", "tensorboard", "my_callbacks:Recorder"]
    assert [type(callback) for callback in CallbackList.from_names(names).callbacks] == [
        ProgressBars,
        TensorBoard,
        Recorder,
    ]
    assert set(CALLBACKS) == {"progress", "tensorboard", "wandb", "mlflow", "log", "prometheus"}


def test_an_unknown_callback_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown callback 'tensorbord'; did you mean tensorboard"):
        CallbackList.from_names(["tensorbord"])


def test_an_own_callback_must_be_one_and_need_no_arguments(own_module):
    with pytest.raises(ConfigError, match=r"'my_callbacks:NotACallback' must be a subclass of fed_distill.*Callback"):
        CallbackList.from_names(["my_callbacks:NotACallback"])
    with pytest.raises(ConfigError, match=r"constructor without arguments: .*path"):
        CallbackList.from_names(["my_callbacks:NeedsArguments"])


def test_scalars_are_the_measured_numbers_by_path():
    assert scalars(record(1)) == {
        "train_loss": 0.5,
        "valid/auc": 0.9,
        "bytes/uplink": 1000.0,
        "merchants": 4.0,
        "rejected": 0.0,
        "seconds": 1.5,
    }


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_has_each_federation_and_seed_apart(tmp_path):
    board = TensorBoard()
    board.on_start(EXPERIMENT, tmp_path)
    for federation, seed, auc in (("fedavg", 0, 0.5), ("fedmd", 0, 0.75), ("fedmd", 1, 0.25)):
        for number in (1, 2):
            board.on_round(record(number, federation, seed, auc))
    board.close()
    assert events(tmp_path / "tensorboard/fedmd/seed-1")["valid/auc"] == [(1, 0.25), (2, 0.25)]
    assert events(tmp_path / "tensorboard/fedmd/seed-0")["valid/auc"] == [(1, 0.75), (2, 0.75)]
    assert events(tmp_path / "tensorboard/fedavg/seed-0")["bytes/uplink"] == [(1, 1000.0), (2, 1000.0)]


@pytest.mark.parametrize("title", [".", "..", "%2E%2E", "商" * 90, "a title"])
def test_tensorboard_keeps_the_events_of_any_title_in_a_folder_of_its_own(tmp_path, title):
    board = TensorBoard()
    board.on_start(EXPERIMENT, tmp_path / "run")
    for federation, auc in ((title, 0.75), ("fedmd", 0.5)):
        board.on_round(record(1, federation, 0, auc))
    board.close()
    folders = sorted((tmp_path / "run" / "tensorboard").iterdir())
    assert len(folders) == 2 and [path.name for path in tmp_path.iterdir()] == ["run"]
    found = {path.name: events(path / "seed-0")["valid/auc"] for path in folders}
    assert found.pop("fedmd") == [(1, 0.5)]
    assert list(found.values()) == [[(1, 0.75)]]


def test_a_resumed_run_purges_the_rounds_that_it_repeats(tmp_path):
    for rounds, auc in (((1, 2, 3), 0.25), ((2, 3), 0.5)):
        board = TensorBoard()
        board.on_start(EXPERIMENT, tmp_path)
        for number in rounds:
            board.on_round(record(number, auc=auc))
        board.close()
    assert events(tmp_path / "tensorboard/fedavg-kd/seed-0")["valid/auc"] == [(1, 0.25), (2, 0.5), (3, 0.5)]


def test_tensorboard_writes_nothing_before_there_is_something(tmp_path):
    board = TensorBoard()
    board.on_start(EXPERIMENT, tmp_path)
    board.close()
    assert list(tmp_path.iterdir()) == []


class FakeWandb:
    """Stands for the package: keeps what it is given."""

    def __init__(self):
        self.settings, self.logged, self.summary, self.finished = None, [], {}, 0

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def test_wandb_gets_the_experiment_the_rounds_and_the_result(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with CallbackList.from_names(["wandb"]) as callbacks:
        callbacks.on_start(EXPERIMENT, tmp_path)
        callbacks.on_round(record(2, seed=1))
        callbacks.on_end(SUMMARY)
    assert fake.settings["config"]["training"]["merchants"]["batch_size"] == 32
    assert (fake.settings["name"], fake.settings["dir"], fake.settings["resume"]) == ("trial", str(tmp_path), "allow")
    assert fake.logged[0]["fedavg-kd/seed-1/valid/auc"] == 0.9
    assert fake.logged[0]["fedavg-kd/seed-1/round"] == 2
    assert fake.summary["retention"] == 0.9
    assert "data" not in fake.summary
    assert fake.finished == 1


def test_a_resumed_run_goes_on_in_wandb_with_the_same_identity(tmp_path, monkeypatch):
    identities = []
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        WeightsAndBiases().on_start(EXPERIMENT, folder)
        identities.append(fake.settings["id"])
    assert identities[0] == identities[1] != identities[2]


def test_without_wandb_the_user_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install fed-distill\[wandb\]"):
        CallbackList.from_names(["wandb"])


def test_a_prefix_does_not_turn_the_number_of_a_round_into_a_metric():
    found = scalars(record(1), "m/seed-0/")
    assert found == {f"m/seed-0/{name}": value for name, value in scalars(record(1)).items()}
