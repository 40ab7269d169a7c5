"""Whatever happens to one file of a stopped run, the run ends as if nothing had, or names what is damaged.

Merchants and server "train" here by adding draws that depend on who trains and when, which takes no time. All that is
read, sent, merged and written is what a run reads, sends, merges and writes.
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.coordinator import rounds, students
from fed_distill.data import load
from fed_distill.errors import FedDistillError
from fed_distill.experiment import comparison, student_factory
from fed_distill.experiment import run as running
from fed_distill.experiment.comparison import Comparison
from fed_distill.experiment.teaching import prepare_teacher
from fed_distill.merchant import site
from fed_distill.merchant.app import build_app
from fed_distill.models.weights import PartialWeights
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.store import METRICS, RunStore
from fed_distill.training.trainer import Fitted
from fed_distill.transport.requests import TRAIN

MUTATIONS, WHOLE = 300, 10
"""How many are tried on all that a resumed run does after its data are read, and how many on whole runs."""
ROUNDS, SITES = 3, 3
SMALL = {
    "federation.rounds": ROUNDS,
    "data.max_merchants": 4,
    "data.max_examples": 20,
    "data.proxy_size": 20,
    "data.options": {"merchants": 8, "rows": 36, "ranking_queries": 12, "ranking_candidates": 6},
    "student.options": {"rows": 256, "width": 4, "head_width": 4},
    "adaptation.enabled": False,
}
STOPPED = {
    "control variates": {
        "controls": ["server", "fedavg"],
        "training.merchants.optimizer": "sgd",
        "federation.method": "scaffold",
        "federation.options": {},
    },
    "own students and cached soft labels": {
        "controls": ["server"],
        "federation.method": "fedmd",
        "federation.options": {},
        "student.by_merchant": ["two-tower", "lstm"],
        "transport": {"soft_labels": ["int8"], "soft_label_cache": 0.01},
    },
    "coded updates with error feedback": {
        "controls": ["fedavg"],
        "federation.aggregator": "fedadam",
        "transport": {"weights": [{"stage": "top-k", "share": 0.05}, "int8"]},
    },
    "earlier students under privacy": {
        "controls": [],
        "federation.method": "moon",
        "federation.options": {},
        "privacy.unit": "example",
        "privacy.noise_multiplier": 1.0,
    },
    "a teacher that learns": {
        "controls": [],
        "federation.method": "fedmkt",
        "federation.options": {},
        "federation.patience": 3,
    },
}


class Stopped(BaseException):
    """Stands for a signal: no code that catches errors may catch it."""


class Drawing:
    """A trainer whose students move by draws, and by all else that a merchant starts from."""

    def fit(self, learners, plans, pace, progress=None):
        for learner in learners:
            draws, start = seeds.torch_stream(*learner.randomness, "drawn"), learner.weights
            told = 0.01 * sum(float(value.float().mean()) for value in learner.references.values())
            moved = {
                name: value
                + 0.01 * torch.randn(value.shape, generator=draws)
                + learner.correction.get(name, torch.tensor(told))
                for name, value in sorted(start.items())
                if value.is_floating_point()
            }
            yield Fitted(learner.name, PartialWeights({**start, **moved}), (0.5,), 3)


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """Nothing but the teacher is trained in this module, no time passes, and no disk is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        for module in (site, students):
            patch.setattr(module, "build_trainer", lambda config, runtime: Drawing())
        for module in (
            rounds,
            comparison,
            student_factory,
        ):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        yield


@dataclass
class Case:
    """A run that was stopped when two of three sites had trained in its last round.

    root: where its folder and its cache are. stopped, older: copies of it, as it was then and after its first round.
    comparison: what a resumed run has made when it begins to read what is kept. ended: what it ends with.
    """

    root: Path
    stopped: Path
    older: Path
    experiment: Experiment
    comparison: Comparison
    ended: dict

    def put_back(self, copy):
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(copy, self.root)

    def end(self, cached=False):
        """Go on to the end of the seed; ``cached``: also use all that is in the cache."""
        folder = self.experiment.runtime.folder / self.experiment.name
        name, found = self.experiment.student.model, {}
        with RunStore.resume(folder, self.experiment) as store:
            comparison = replace(self.comparison, store=store)
            if cached:
                teaching = prepare_teacher(self.experiment, comparison.teaching.data, Callback())
                found = {"teacher": bits(teaching.teacher.state_dict()), "says": teaching.labels.numpy().tobytes()}
                found |= {
                    "scores": teaching.metrics,
                    "start": bits(comparison.factory.start(name, self.experiment.federation.start)[0]),
                }
            found["outcomes"] = comparison.run()
            found["student"] = bits(comparison.final_weights(self.experiment.federation.title))
            return found | {"records": store.records()}


def bits(weights):
    return {name: value.numpy().tobytes() for name, value in weights.items()}


def contents(root):
    """All files but locks."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    return {path: path.read_bytes() for path in files}


class Copying(Callback):
    """Copies a folder after the main federation's first round."""

    def __init__(self, root, to):
        self.root, self.to = root, to

    def on_round(self, record):
        if record["federation"] != "fedavg" and record["round"] == 1:
            shutil.copytree(self.root, self.to)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A cache with one teacher, which all cases have."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="module", params=STOPPED, ids=lambda name: name.replace(" ", "-"))
def case(request, tiny_experiment, simulate, teachers, tmp_path_factory):
    place = tmp_path_factory.mktemp("stopped")
    root, stopped, older = place / "there", place / "stopped", place / "older"
    changes = {**SMALL, **STOPPED[request.param], "runtime.cache": str(teachers)}
    experiment = tiny_experiment(root / "runs", changes)
    prepare_teacher(experiment, load(experiment.data), Callback())
    shutil.copytree(teachers, root / "cache")
    experiment = experiment.with_changes({"runtime.cache": str(root / "cache")})
    inner, left, made = build_app(), [SITES * (ROUNDS - 1) + 2], []

    def app(message, context):
        reply = inner(message, context)
        if message.metadata.message_type == TRAIN:
            left[0] -= message.content.config_records["request"]["arm"] == experiment.federation.title
            if not left[0]:
                raise Stopped
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "Comparison", lambda *given: made.append(Comparison(*given)) or made[-1])
        with pytest.raises(Stopped):
            simulate(experiment, app=app, sites=SITES, callbacks=[Copying(root, older)])
    shutil.copytree(root, stopped)
    left[0] = -1
    comparison = replace(made[0], callbacks=Callback())
    case = Case(root, stopped, older, experiment.with_changes({"runtime.resume": True}), comparison, {})
    case.ended = case.end(cached=True)
    return case


def flipped(data, draw, count=1):
    changed = np.frombuffer(data, np.uint8).copy()
    near = min(len(data), 1024) if draw.random() < 0.5 else len(data)  # headers are near the beginning
    changed[draw.integers(near, size=count)] ^= np.uint8(1 << draw.integers(8))
    return changed.tobytes()


def zeroed(data, draw):
    start, size = draw.integers(len(data)), draw.integers(1, 512)
    return data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


def with_a_line(data, draw, change):
    lines = data.splitlines(keepends=True)
    place = draw.integers(len(lines))
    return b"".join([*lines[:place], *change(lines[place]), *lines[place + 1 :]])


def with_another_digit(data, draw):
    digits = [place for place, sign in enumerate(data[:4096]) if chr(sign).isdigit()]
    place = digits[draw.integers(len(digits))] if digits else 0
    return data[:place] + str(draw.integers(10)).encode() + data[place + 1 :]


IN_PLACE = [
    flipped,
    flipped,
    lambda data, draw: flipped(data, draw, 5),
    zeroed,
    with_another_digit,
    with_another_digit,
    lambda data, draw: data[: draw.integers(len(data))],
    lambda data, draw: data[: -draw.integers(1, 40)],
    lambda data, draw: data + draw.bytes(draw.integers(1, 64)),
    lambda data, draw: data + data,
    lambda data, draw: with_a_line(data, draw, lambda line: [line, line]),
    lambda data, draw: with_a_line(data, draw, lambda line: []),
]


def mutated(case, draw, below):
    """Change, delete, or exchange one file that is there, or put the one of the first round in its place; what was done
    to which files."""
    while True:
        before = contents(case.root)
        files = [path for path in before if path.is_relative_to(case.root / below)]
        path = files[draw.integers(len(files))]
        like = [one for one in files if one.suffix == path.suffix and one != path]
        older = case.older / path.relative_to(case.root)
        kind = draw.integers(len(IN_PLACE) + 5)
        if kind < len(IN_PLACE):
            path.write_bytes(IN_PLACE[kind](path.read_bytes(), draw))
        elif kind == len(IN_PLACE):
            path.unlink()
        elif kind == len(IN_PLACE) + 1 and older.exists():
            shutil.copy(older, path)
        elif like:
            other = like[draw.integers(len(like))]
            other.write_bytes(before[path])
            if kind > len(IN_PLACE) + 2:
                path.write_bytes(before[other])
        now = contents(case.root)
        if touched := {one: now.get(one) for one in before if now.get(one) != before[one]}:
            return f"{kind} {sorted(touched)}", touched


def named_or(end, what, touched):
    """What ``end`` gives; None if it says, with an error of this program's, which file is damaged."""
    try:
        return end()
    except FedDistillError as error:
        assert any(str(path) in str(error) for path in touched), (what, str(error))
        return None


def test_a_mutated_file_changes_nothing_or_is_named(case):
    draw, counts = np.random.default_rng(18), {"equal": 0, "named": 0}
    case.put_back(case.stopped)
    case.end()
    good = contents(case.root)
    for number in range(MUTATIONS // len(STOPPED)):
        case.put_back(case.stopped)
        cached = number % 10 == 0
        what, touched = mutated(case, draw, "cache" if cached else "runs")
        found = named_or(partial(case.end, cached), what, touched)
        counts["equal" if found else "named"] += 1
        if found:
            assert found == {key: case.ended[key] for key in found}, what
            now = contents(case.root)
            for path in now.keys() | good.keys():
                unused = path in touched and touched[path] == now.get(path) and path.name != METRICS
                timed = any(part.startswith("ledgers") for part in path.parts)  # charges have the time of day
                assert unused or timed or now.get(path) == good.get(path), (what, path)
    assert min(counts.values()) > MUTATIONS / len(STOPPED) / 5  # each of both is tried often


def test_a_whole_run_with_a_mutated_file_ends_in_the_same_report_or_names_it(case, simulate, outcome_of, tmp_path):
    draw = np.random.default_rng(19)
    case.put_back(case.stopped)
    folder, _ = simulate(case.experiment, sites=SITES)
    expected = outcome_of(folder)
    shutil.copytree(case.root, tmp_path / "finished")
    for number in range(WHOLE // len(STOPPED)):
        case.put_back(tmp_path / "finished" if number % 2 else case.stopped)
        what, touched = mutated(case, draw, "cache" if number % 4 == 0 else "runs")
        found = named_or(lambda: outcome_of(simulate(case.experiment, sites=SITES)[0]), what, touched)
        assert found in (None, expected), what
