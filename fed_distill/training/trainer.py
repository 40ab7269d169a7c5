"""Interface of trainers: from learners to trained learners.

A learner is one owner of examples (a merchant, or the server) with its initial student. For the same learners, all
trainers return the same weights, up to the order of floating-point sums.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fed_distill.models.base import TextModel
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Plan, References


@dataclass(frozen=True)
class Learner:
    """An owner of examples and what it trains.

    student: the model; learners may share one, whose own weights are overwritten. weights: where training starts; they
    are not changed. private: its encoded examples with int64 ``labels`` ``[examples]``. unlabeled: its encoded examples
    without labels, for phases on them. proxy: the encoded proxy set. randomness: (run seed, then what tells this
    training from all others, such as merchant and round). privacy: how its private phases are protected; None for not
    at all. groups: which group each private example belongs to, int64
    ``[examples]``, numbers 0..n-1, where groups are the members that ``privacy`` protects; None where examples are.
    references: what it has predicted on its private examples for the plan's phases, ``[examples, ...]``.
    unlabeled_references: the same on its unlabeled examples. label_probabilities: where ``labels`` are uncertain, the
    probabilities of the true ones ``[examples, classes]``, by which the loss of private phases is averaged.
    label_temperature: temperature of the predictions in that loss, if it is a cross-entropy alone; else 1.
    correction: what corrected phases add to every gradient, by weight; weights that are not in it are not corrected.
    """

    name: str
    student: TextModel
    weights: Weights
    private: Encoded
    labels: Tensor
    proxy: Encoded
    randomness: Randomness
    privacy: ExampleDP | None = None
    references: References = field(default_factory=dict)
    correction: Weights = field(default_factory=dict)
    groups: Tensor | None = None
    unlabeled: Encoded = field(default_factory=dict)
    unlabeled_references: References = field(default_factory=dict)
    label_probabilities: Tensor | None = None
    label_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.groups is not None and not _numbers_all(self.groups, len(self.labels)):
            raise ValueError(f"{self.name}: groups must be int64 numbers 0..n-1, each in use, one for each example")

    def examples(self) -> int:
        """Number of private examples."""
        return len(self.labels)

    def members(self) -> int:
        """Number of members of the unit that ``privacy`` protects: of groups, or of private examples."""
        return self.examples() if self.groups is None else len(torch.unique(self.groups))


@dataclass(frozen=True)
class Fitted:
    """A learner after training. weights: what training could change: every weight outside the tables, and of
    each table the touched rows (all of them where the submodel is off). loss: mean loss of each phase. steps: of all
    phases."""

    name: str
    weights: PartialWeights
    loss: tuple[float, ...]
    steps: int


@dataclass(frozen=True)
class Failure:
    """A learner that could not be trained, and why."""

    name: str
    reason: str


@dataclass
class Steps:
    """Counts the steps of all learners of a call."""

    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def take(self, count: int = 1) -> None:
        """``count`` learners took a step; a negative number takes back steps that will be repeated."""
        self.done += count
        if self.progress is not None and count > 0:
            self.progress(self.done, self.total)


def _numbers_all(groups: Tensor, examples: int) -> bool:
    """Whether ``groups`` are ``[examples]`` numbers 0..n-1, each used."""
    if groups.dtype != torch.int64 or groups.shape != (examples,):
        return False
    found = torch.unique(groups)
    return torch.equal(found, torch.arange(len(found)))


class Trainer(Protocol):
    """Runs one plan for each learner."""

    def fit(
        self,
        learners: Sequence[Learner],
        plans: Mapping[str, Plan],
        pace: Pace,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Fitted | Failure]:
        """Train every learner by its plan (by learner name); yield each when it is done, in any order.

        ``progress`` is called with (steps done, steps in all). A learner without examples, or whose loss is not
        finite, is a Failure; the others go on.
        """
