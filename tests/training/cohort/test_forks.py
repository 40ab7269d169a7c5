"""Cohorts side by side in forked processes: the same students, in the same order, whatever happens to a process."""

import logging
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fed_distill.config import TrainerConfig
from fed_distill.errors import ModelError, TrainingError
from fed_distill.models.weights import PartialWeights
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort import trainer as module
from fed_distill.training.cohort.forks import can_fork, side_by_side
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.preparation import prepare
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Failure, Fitted

PACE = Pace(1e-2)
DP = ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)
CONFIG = TrainerConfig(batch_size=8, optimizer="sgd")

pytestmark = pytest.mark.skipif(not can_fork(), reason="cohorts train in one process here")


@pytest.fixture(autouse=True)
def two_cores():
    """Two threads for torch, as on two cores; no process is left behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    assert multiprocessing.active_children() == []
    torch.set_num_threads(before)


def fit(trainer, learners, plan, progress=None):
    return list(trainer.fit(learners, {one.name: plan for one in learners}, PACE, progress))


@pytest.fixture
def noted(monkeypatch, tmp_path):
    """Process, threads and number of merchants of each cohort that was trained."""
    run = module.Cohort.run

    def note(self, pace, on_steps):
        with (tmp_path / "noted").open("a") as file:
            file.write(f"{os.getpid()} {torch.get_num_threads()} {len(self._members)}\n")
        return run(self, pace, on_steps)

    monkeypatch.setattr(module.Cohort, "run", note)
    return lambda: [tuple(map(int, line.split())) for line in (tmp_path / "noted").read_text().splitlines()]


def replaced(monkeypatch, run):
    """Let ``run(cohort, train)`` train cohorts in place of ``Cohort.run``; ``train()`` is what that would do."""
    plain = module.Cohort.run
    monkeypatch.setattr(
        module.Cohort, "run", lambda self, pace, on_steps: run(self, lambda: plain(self, pace, on_steps), on_steps)
    )


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_students_equal_those_of_one_after_another(noted, small_student, merchants, plans, distance, privacy):
    learners = merchants(small_student("two-tower"), privacy)
    progress = []
    found = fit(CohortTrainer(CONFIG), learners, plans.turns, lambda *steps: progress.append(steps))
    processes = {process for process, _, _ in noted()}
    assert len(noted()) == 2 and os.getpid() not in processes
    assert {threads for _, threads, _ in noted()} == {1}
    alone = {one.name: one for one in fit(SequentialTrainer(CONFIG), learners, plans.turns)}
    assert sorted(one.name for one in found) == sorted(alone)
    for one in found:
        same = alone[one.name]
        assert distance(one.weights.arrays, same.weights.arrays) < 1e-5
        assert one.loss == pytest.approx(same.loss, rel=1e-4) and one.steps == same.steps
        for part in ("rows", "counts"):
            values, others = getattr(one.weights, part), getattr(same.weights, part)
            assert values.keys() == others.keys()
            assert all(torch.equal(values[name], others[name]) for name in values)
    total = sum(prepare(one, plans.turns, CONFIG).steps for one in learners)
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)


def test_two_trainings_are_bit_equal_and_in_one_order(small_student, merchants, plans):
    learners = merchants(small_student("two-tower"))
    first, again = (fit(CohortTrainer(CONFIG), learners, plans.turns) for _ in range(2))
    assert [one.name for one in again] == [one.name for one in first]
    for one, other in zip(first, again, strict=True):
        assert one.weights.arrays.keys() == other.weights.arrays.keys()
        assert all(torch.equal(value, other.weights.arrays[name]) for name, value in one.weights.arrays.items())


def test_weights_outlive_their_process_and_may_be_written(small_student, merchants, plans):
    learners = merchants(small_student("two-tower"))
    first = next(iter(CohortTrainer(CONFIG).fit(learners, {one.name: plans.turns for one in learners}, PACE)))
    value = next(iter(first.weights.arrays.values()))
    value += 1.0
    assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), MemoryError(), CannotStack("odd")])
def test_a_cohort_that_cannot_be_trained_beside_others_is_trained_after_them(
    monkeypatch, small_student, merchants, plans, distance, caplog, error
):
    learners, progress, parent = merchants(small_student("two-tower")), [], os.getpid()
    undisturbed = {one.name: one for one in fit(CohortTrainer(CONFIG), learners, plans.turns)}
    failing = next(iter(undisturbed))

    def run(cohort, train, on_steps):
        if os.getpid() != parent and failing in {member.learner.name for member in cohort._members}:
            on_steps(1)
            raise error
        return train()

    replaced(monkeypatch, run)
    with caplog.at_level(logging.ERROR):
        found = fit(CohortTrainer(CONFIG), learners, plans.turns, lambda *steps: progress.append(steps))
    assert {one.name for one in found} == undisturbed.keys()
    assert [one.name for one in found] != list(undisturbed)  # it came last
    for one in found:
        assert distance(one.weights.arrays, undisturbed[one.name].weights.arrays) < 1e-5
    assert progress[-1][0] == progress[-1][1]


def test_a_loss_that_is_not_finite_fails_its_merchant_alone(small_student, merchants, plans):
    learners = merchants(small_student("two-tower"))
    broken = learners[0]
    for value in broken.weights.values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    found = fit(CohortTrainer(CONFIG), learners, plans.turns)
    failures = [one for one in found if isinstance(one, Failure)]
    assert failures and all("is nan" in one.reason for one in failures if one.name == broken.name)
    assert broken.name in {one.name for one in failures}


class OwnError(TrainingError):
    """Of somebody's own method."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("something else"), RuntimeError),
        (FileNotFoundError(2, "No such file", "/data/lookup.bin"), RuntimeError),
        (SystemExit("a library gave up"), RuntimeError),
        (ModelError("frozen in part"), ModelError),
    ],
)
def test_an_error_there_is_an_error_here(monkeypatch, small_student, merchants, plans, error, expected):
    def run(cohort, train, on_steps):
        raise error

    replaced(monkeypatch, run)
    with pytest.raises(expected, match=re.escape(str(error))):
        fit(CohortTrainer(CONFIG), merchants(small_student("two-tower")), plans.turns)


@pytest.mark.parametrize("error", [OwnError("own"), TrainingError("across the batch")])
def test_what_an_objective_refuses_is_a_failure_of_its_merchants(monkeypatch, small_student, merchants, plans, error):
    def run(cohort, train, on_steps):
        raise error

    replaced(monkeypatch, run)
    learners = merchants(small_student("two-tower"))
    found = fit(CohortTrainer(CONFIG), learners, plans.turns)
    assert sorted((one.name, one.reason) for one in found) == sorted((one.name, str(error)) for one in learners)


@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64], ids=str)
def test_weights_of_any_shape_and_type_come_back(shape, dtype):
    sent = PartialWeights({"first": torch.ones(5).bool(), "weight": (7 * torch.rand(shape)).to(dtype)})

    def work(number, on_steps):
        return [Fitted("shop", sent, (0.5, math.inf), 3), Failure("other", "no examples")]

    ((fitted, failure),) = side_by_side(work, 1, 1, lambda count: None)
    assert (fitted.name, fitted.loss, fitted.steps) == ("shop", (0.5, math.inf), 3)
    assert all(torch.equal(fitted.weights.arrays[name], value) for name, value in sent.arrays.items())
    assert [value.dtype for value in fitted.weights.arrays.values()] == [torch.bool, dtype]
    assert failure == Failure("other", "no examples")


def test_a_signal_without_a_name_is_named_by_its_number(monkeypatch, small_student, merchants, plans):
    number = signal.SIGRTMIN + 2
    replaced(monkeypatch, lambda cohort, train, on_steps: os.kill(os.getpid(), number))
    with pytest.raises(TrainingError, match=f"signal {int(number)}"):
        fit(CohortTrainer(CONFIG), merchants(small_student("two-tower")), plans.turns)


def test_a_killed_process_is_an_error_that_says_what_to_do(monkeypatch, small_student, merchants, plans):
    replaced(monkeypatch, lambda cohort, train, on_steps: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(TrainingError, match=r"SIGKILL.*runtime\.cohort"):
        fit(CohortTrainer(CONFIG), merchants(small_student("two-tower")), plans.turns)


def test_an_iteration_that_is_left_early_leaves_no_process(noted, small_student, merchants, plans):
    learners = merchants(small_student("two-tower"))
    stream = CohortTrainer(CONFIG).fit(learners, {one.name: plans.turns for one in learners}, PACE)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()


LIMITED = """
import resource
from fed_distill.training.cohort.forks import side_by_side
from fed_distill.training.trainer import Failure, Fitted

GIB = 2**30
resource.setrlimit(resource.RLIMIT_DATA, (4 * GIB, 4 * GIB))

def work(number, on_steps):
    return [Failure("x", str(resource.getrlimit(resource.RLIMIT_DATA)[0] / GIB))]

for (one,) in side_by_side(work, 2, 2, print):
    print(one.reason)
"""


def test_processes_share_a_memory_limit_of_their_parent():
    found = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 2
    assert all(2.0 <= float(one) < 3.5 for one in found)  # half of what the parent has not allocated, above what it has


ORPHANS = """
import os, time, torch
from fed_distill.training.cohort.forks import side_by_side

def work(number, on_steps):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: print may mix the lines of two processes
    time.sleep(600)

for _ in side_by_side(work, 2, 2, lambda count: None):
    pass
"""


def test_processes_end_with_a_parent_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        try:
            children = [int(parent.stdout.readline()) for _ in range(2)]
        finally:
            parent.kill()
    while any(map(_runs, children)):  # the limit is that of every test
        time.sleep(0.05)
    assert parent.returncode == -signal.SIGKILL


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
