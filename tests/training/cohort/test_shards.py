"""Cohorts side by side, one on each thread: the same students, in the same order, whatever happens to one of them."""

import logging

import pytest
import torch

from fed_distill.config import TrainerConfig
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort import trainer as module
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.preparation import prepare
from fed_distill.training.sequential import SequentialTrainer

PACE = Pace(1e-2)
DP = ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)
CONFIG = TrainerConfig(batch_size=8, optimizer="sgd")


@pytest.fixture
def threads():
    """Two threads for torch, as on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def fit(trainer, learners, plan, progress=None):
    return list(trainer.fit(learners, {one.name: plan for one in learners}, PACE, progress))


@pytest.fixture
def used(monkeypatch):
    """On which threads cohorts were trained, and how many merchants each had."""
    found = []
    run = module.Cohort.run

    def noted(self, pace, on_steps):
        found.append((torch.get_num_threads(), len(self._members)))
        return run(self, pace, on_steps)

    monkeypatch.setattr(module.Cohort, "run", noted)
    return found


@pytest.mark.parametrize(
    "privacy", [None, ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)], ids=["plain", "private"]
)
def test_students_are_those_of_one_after_another_in_the_order_of_one_thread(
    threads, used, small_student, merchants, plans, distance, privacy
):
    learners = merchants(small_student("two-tower"), privacy)
    told = []
    found = fit(CohortTrainer(CONFIG), learners, plans.turns, lambda *steps: told.append(steps))
    assert len(used) == 2 and {one for one, _ in used} == {1}
    alone = {one.name: one for one in fit(SequentialTrainer(CONFIG), learners, plans.turns)}
    assert sorted(one.name for one in found) == sorted(alone)
    for one in found:
        assert distance(one.weights.arrays, alone[one.name].weights.arrays) < 1e-5
    total = sum(prepare(one, plans.turns, CONFIG).steps for one in learners)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    again = fit(CohortTrainer(CONFIG), learners, plans.turns)
    assert [one.name for one in again] == [one.name for one in found]
    assert all(
        torch.equal(value, other.weights.arrays[name])
        for one, other in zip(found, again, strict=True)
        for name, value in one.weights.arrays.items()
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), CannotStack("odd")])
def test_who_cannot_be_trained_beside_others_is_trained_after_them(
    threads, monkeypatch, small_student, merchants, plans, distance, caplog, error
):
    learners, told, run = merchants(small_student("two-tower")), [], module.Cohort.run
    undisturbed = {one.name: one for one in fit(CohortTrainer(CONFIG), learners, plans.turns)}
    failing = {next(iter(undisturbed))}

    def once(self, pace, on_steps):
        on_steps(1)
        if failing & {member.learner.name for member in self._members}:
            failing.clear()
            raise error
        on_steps(-1)
        return run(self, pace, on_steps)

    monkeypatch.setattr(module.Cohort, "run", once)
    with caplog.at_level(logging.ERROR):
        found = {one.name: one for one in fit(CohortTrainer(CONFIG), learners, plans.turns, lambda *s: told.append(s))}
    assert found.keys() == undisturbed.keys()
    for name, one in found.items():
        assert distance(one.weights.arrays, undisturbed[name].weights.arrays) < 1e-5
    assert told[-1][0] == told[-1][1]


def test_an_error_on_a_thread_is_an_error_here(threads, monkeypatch, small_student, merchants, plans):
    def broken(self, pace, on_steps):
        raise RuntimeError("something else")

    monkeypatch.setattr(module.Cohort, "run", broken)
    with pytest.raises(RuntimeError, match="something else"):
        fit(CohortTrainer(CONFIG), merchants(small_student("two-tower")), plans.turns)


def test_an_iteration_that_is_left_early_leaves_no_thread_at_work(threads, used, small_student, merchants, plans):
    learners = merchants(small_student("two-tower"))
    stream = CohortTrainer(CONFIG).fit(learners, {one.name: plans.turns for one in learners}, PACE)
    next(stream)
    stream.close()
    assert torch.get_num_threads() == 2
