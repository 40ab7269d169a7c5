"""Plan of a training, as data: phases with an objective on private or proxy examples.

A plan is independent of its execution, so that any trainer can run it: with per-example gradients for DP, one merchant
at a time, or a whole cohort at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs
from fed_distill.text.encoded import Encoded

Data = Literal["private", "unlabeled", "proxy"]
"""Examples that a phase trains on."""

References = Mapping[str, Tensor]
"""Targets of an objective, each row-aligned with the batch: ``labels``, ``soft_labels`` ..."""

Objective = Callable[[Outputs, References], Tensor]
"""A pure function: (model outputs, references) -> loss of each example ``[batch]``.

An example's loss must not depend on other examples of the batch: trainers choose batches, and DP requires per-example
gradients. The cohort trainer checks this, and otherwise trains merchants one by one.
"""


def one_each(losses: Tensor, examples: int) -> Tensor:
    """Return ``losses``; raise TrainingError unless there is one for each of the ``examples``."""
    if losses.shape != (examples,):
        raise TrainingError(
            f"an objective must return one loss for each example, shape [{examples}], not {list(losses.shape)}"
        )
    return losses


@dataclass(frozen=True)
class Predicted:
    """A reference that each merchant computes before training, on its own examples and without gradient.

    by: the student of the downlink (``global``), the merchant's student of its last round (``previous``; initially the
    downlink's), or the student from which its training starts (``start``). what: probabilities
    ``[examples, classes]``, or representations ``[examples, width]`` (``models.prediction.representation``).
    """

    by: Literal["global", "previous", "start"]
    what: Literal["probabilities", "representation"]


@dataclass(frozen=True)
class Duration:
    """Duration of a phase: a number of ``epochs``, or of ``steps``. Raises ValueError unless it has exactly one."""

    epochs: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase requires either epochs or steps: set exactly one")


@dataclass(frozen=True)
class Phase:
    """One phase of training.

    data: examples to train on: the merchant's labelled ``private`` ones, its ``unlabeled`` ones (not with DP at the
    merchant), or the shared ``proxy`` set.
    epochs or steps: duration; exactly one of them.
    references: tensors row-aligned with the whole proxy set (``[proxy, ...]``); a private phase has ``labels``.
    predicted: further references of a private or unlabeled phase, which the merchant computes itself.
    hidden: whether the objective uses hidden states, which are then in the outputs.
    proximal_mu: weight mu of the proximal term to the initial weights, mu/2 * ||w - w0||^2 (FedProx, Li et al. 2020,
    eq. 2); 0: none.
    learning_rate_scale: factor of the configured learning rate.
    corrected: whether the learner's ``correction`` is added to the gradient of every step, after clipping and noise. It
    also changes rows of tables that no example uses, so that all rows are trained and sent.
    """

    objective: Objective
    data: Data = "private"
    epochs: float | None = None
    steps: int | None = None
    references: References = field(default_factory=dict)
    predicted: Mapping[str, Predicted] = field(default_factory=dict)
    hidden: bool = False
    proximal_mu: float = 0.0
    learning_rate_scale: float = 1.0
    corrected: bool = False

    def __post_init__(self) -> None:
        Duration(self.epochs, self.steps)  # validates both
        if self.predicted and self.data == "proxy":
            raise ValueError("`predicted` is for a merchant's own examples: use `references` on the proxy set")

    @property
    def duration(self) -> Duration:
        """Its epochs or steps."""
        return Duration(self.epochs, self.steps)

    def run(self, model: nn.Module, batch: Encoded) -> Outputs:
        """Return the outputs of ``model`` for a collated batch, with hidden states if the objective uses them."""
        outputs: Outputs = model(batch, hidden=True) if self.hidden else model(batch)
        return outputs


@dataclass(frozen=True)
class Plan:
    """Phases in the order of training.

    pair: whether a merchant trains the downlink's student and its own one, which it keeps, as a pair (``models.pair``).
    """

    phases: tuple[Phase, ...] = ()
    pair: bool = False

    @property
    def private_durations(self) -> tuple[Duration, ...]:
        """Durations of the phases on private examples, in order."""
        return tuple(phase.duration for phase in self.phases if phase.data == "private")

    def predicted(self, data: Data) -> Mapping[str, Predicted]:
        """References that the merchant computes itself, of all phases on ``data``."""
        phases = [phase for phase in self.phases if phase.data == data]
        return {name: wanted for phase in phases for name, wanted in phase.predicted.items()}

    @property
    def looks_back(self) -> bool:
        """Whether a merchant must keep its trained student for the next round."""
        return any(wanted.by == "previous" for phase in self.phases for wanted in phase.predicted.values())
