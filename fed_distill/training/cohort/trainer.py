"""Trains hundreds of merchants as one tensor program, with the same weights as one after another.

Merchants of one plan are ordered by their number of steps and divided into cohorts that fit in memory; a cohort takes a
step of all its merchants at once. Students that cannot be stacked use the sequential trainer, which is logged once.
"""

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fed_distill.config import TrainerConfig
from fed_distill.errors import TrainingError
from fed_distill.models.base import TextModel
from fed_distill.training.cohort.forks import can_fork, side_by_side
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.planning import Footprint, examined, memory_budget
from fed_distill.training.cohort.stacking import Skeleton
from fed_distill.training.cohort.training import Cohort
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Plan
from fed_distill.training.preparation import Prepared, prepare
from fed_distill.training.robust import passes
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Failure, Fitted, Learner, Steps

CPU_COHORT, GPU_COHORT = 16, 1024
"""Merchants that train at the same time at most, unless configured otherwise. On a CPU more of them leave its cache
(measured by ``experiments/benchmarks``); on a GPU memory is the limit."""

SMALLEST_COHORT = 4
"""Merchants in the cohort of one of many processes, which together may then train more than ``CPU_COHORT``."""

_log = logging.getLogger(__name__)


@dataclass
class CohortTrainer:
    """Trains learners together; see ``training.trainer.Trainer``.

    cohort: how many at most, None for the device's own number.
    """

    config: TrainerConfig
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cohort: int | None = None
    _known: dict[tuple[int, bool, bool, bool], tuple[TextModel, tuple[Skeleton, Footprint] | None]] = field(
        default_factory=dict, init=False
    )
    _smaller: int = field(default=1, init=False)

    def fit(
        self,
        learners: Sequence[Learner],
        plans: Mapping[str, Plan],
        pace: Pace,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Fitted | Failure]:
        """Train every learner by its plan; yield each when it is done, those with the most steps first."""
        ready: list[Prepared] = []
        for learner in learners:
            try:
                ready.append(prepare(learner, plans[learner.name], self.config))
            except TrainingError as error:
                yield Failure(learner.name, str(error))
        alike: dict[tuple[int, int, bool, bool], list[Prepared]] = {}
        for member in ready:
            key = id(member.learner.student), id(plans[member.learner.name]), *_unit(member)
            alike.setdefault(key, []).append(member)
        steps = Steps(sum(member.steps for member in ready), progress)
        for members in alike.values():
            members.sort(key=lambda one: one.steps, reverse=True)
            yield from self._fit_alike(members, pace, steps)

    def _fit_alike(self, members: Sequence[Prepared], pace: Pace, steps: Steps) -> Iterator[Fitted | Failure]:
        """Train merchants that share student, plan and unit of privacy, ordered by falling number of steps."""
        batch = max(member.largest_batch for member in members)
        alone = batch == 0 or (len(members) == 1 and self._plain_is_as_good(members[0]))
        known = None if alone else self._examined(members)
        if known is None:
            for member in members:
                yield SequentialTrainer(self.config).fit_one(member, pace, steps.take)
            return
        skeleton, footprint = known
        processes = self._processes(len(members))
        if processes > 1:
            members = yield from self._fit_side_by_side(members, skeleton, footprint, batch, pace, steps, processes)
        while members:
            size, together = self._cut(footprint, batch, len(members))
            try:
                fitted = self._fit_cohort(members[:size], skeleton, together, pace, steps.take)
            except CannotStack as error:
                _log.warning("the next merchants are trained one after another: %s", error)
                yield from (SequentialTrainer(self.config).fit_one(member, pace, steps.take) for member in members)
                return
            if fitted is None:
                self._shrink(footprint, batch, len(members))
                continue
            yield from fitted
            members = members[size:]

    def _processes(self, members: int) -> int:
        """How many processes train cohorts of ``members`` side by side: on a CPU as many as torch has threads."""
        if self.device.type != "cpu" or not can_fork():
            return 1
        return min(torch.get_num_threads(), members)

    def _fit_side_by_side(
        self,
        members: Sequence[Prepared],
        skeleton: Skeleton,
        footprint: Footprint,
        batch: int,
        pace: Pace,
        steps: Steps,
        processes: int,
    ) -> Generator[Fitted | Failure, None, Sequence[Prepared]]:
        """Train cohorts in ``processes`` at once and yield their members in order.

        Returns the members that are left to train one cohort after another: those for whom memory ran out, or who
        cannot be stacked after all. How cohorts are cut does not depend on which process is faster.
        """
        size, together = self._cut(footprint, batch, len(members), processes)
        cohorts: list[Sequence[Prepared]] = [members[first : first + size] for first in range(0, len(members), size)]

        def train(number: int, on_steps: Callable[[int], None]) -> list[Fitted | Failure] | None:
            try:
                return self._fit_cohort(cohorts[number], skeleton, together, pace, on_steps)
            except CannotStack:  # reported by whoever trains them next, one after another
                return None
            finally:
                cohorts[number] = ()  # this process is a copy, and has no further use for what it drew

        left: list[Prepared] = []
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # what is done with one cohort is done while the next are in training
        try:
            found = side_by_side(train, len(cohorts), processes, steps.take)
            for cohort, results in zip(cohorts, found, strict=True):
                if results is None:
                    left += cohort
                else:
                    yield from results
        finally:
            torch.set_num_threads(before)
        return left

    def _cut(self, footprint: Footprint, batch: int, members: int, processes: int = 1) -> tuple[int, int]:
        """How many of ``members`` train next, and how many examples of each at a time, if ``processes`` train."""
        budget = memory_budget(self.device, processes) // self._smaller
        usual = GPU_COHORT if self.device.type == "cuda" else max(CPU_COHORT // processes, SMALLEST_COHORT)
        most = self.cohort or usual
        cohorts = math.ceil(members / min(most, footprint.merchants(budget, batch)))
        cohorts = min(math.ceil(cohorts / processes) * processes, members)  # so that no process waits for another
        size = math.ceil(members / cohorts)
        return size, min(batch, footprint.examples(budget, size))

    def _fit_cohort(
        self,
        members: Sequence[Prepared],
        skeleton: Skeleton,
        together: int,
        pace: Pace,
        on_steps: Callable[[int], None],
    ) -> list[Fitted | Failure] | None:
        """Train one cohort; None if memory runs out, with nothing of it kept and its steps taken back. If its objective
        refuses to be trained, all members have failed: they are not trained in another way.

        Raise TrainingError if it runs out with a single example, or a single group of them.
        """
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            taken += count
            on_steps(count)

        try:
            return list(Cohort(members, skeleton, self.config, self.device, together).run(pace, take))
        except CannotStack:
            on_steps(-taken)
            raise
        except TrainingError as error:
            return [Failure(member.learner.name, str(error)) for member in members]
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(members) == 1 and together == 1:
                raise TrainingError(
                    f"{members[0].learner.name}: memory is insufficient even for one example at a time: decrease "
                    "data.max_examples or the student's size"
                ) from error
        on_steps(-taken)
        return None

    def _shrink(self, footprint: Footprint, batch: int, members: int) -> None:
        """Halve the memory that is planned with, from now on, until cohorts are cut smaller than they were."""
        before = self._cut(footprint, batch, members)
        while self._cut(footprint, batch, members) == before:
            self._smaller *= 2
        _log.warning(
            "memory ran out with %d merchants and %d examples of each at a time: continuing with %d and %d",
            *before,
            *self._cut(footprint, batch, members),
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _examined(self, members: Sequence[Prepared]) -> tuple[Skeleton, Footprint] | None:
        """The stacked student and what a merchant takes, found once for each; None if it cannot be stacked."""
        student = members[0].learner.student
        hidden = any(phase.hidden for phase in members[0].phases)
        key = id(student), hidden, *_unit(members[0])
        if key not in self._known:
            member = next((one for one in members if _can_be_tried(one)), None)
            if member is None:
                return None
            moments = 2 if self.config.optimizer == "adamw" else 1
            try:
                skeleton, footprint = examined(member, self.device, moments)
                footprint = replace(footprint, example=footprint.example * passes(self.config))
                self._known[key] = student, (skeleton, footprint)
            except CannotStack as error:
                _log.warning(
                    "student %s cannot be trained by cohorts, so merchants train one after another, on the CPU in "
                    "float32: %s",
                    student.kind or type(student).__name__,
                    error,
                )
                self._known[key] = student, None
        return self._known[key][1]

    def _plain_is_as_good(self, member: Prepared) -> bool:
        """Whether nothing is gained over the plain loop for a single merchant."""
        return self.device.type == "cpu" and self.config.precision == "float32" and member.learner.privacy is None


def _unit(member: Prepared) -> tuple[bool, bool]:
    """Whether it is trained with DP, and whether by groups of examples."""
    return member.learner.privacy is not None, member.learner.groups is not None


def _can_be_tried(member: Prepared) -> bool:
    """Whether it draws any example, and starts from finite weights."""
    drawn = any(len(index) for segment in member.segments for index in segment.batches)
    return drawn and all(bool(torch.isfinite(value).all()) for value in member.learner.weights.values())


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
