"""What a merchant (or the server) trains, as data: phases of an objective over its private or the proxy examples.

A plan says nothing of how it is run, so that any trainer can run it: one example at a time for DP, one
merchant at a time, or a whole cohort at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs
from fed_distill.text.encoded import Encoded

References = Mapping[str, Tensor]
"""Values that an objective compares with, each row-aligned with the batch: ``labels``, ``soft_labels`` ..."""

Objective = Callable[[Outputs, References], Tensor]
"""A pure function: (model outputs, references) -> loss of each example ``[batch]``.

An example's loss must not depend on the others of the batch: who is in a batch is the trainer's business, and under DP
nothing could be said of an example otherwise. The cohort trainer checks it, and trains merchants one by one if so.
"""


def one_each(losses: Tensor, examples: int) -> Tensor:
    """``losses``; raise TrainingError unless there is one for each of the ``examples``."""
    if losses.shape != (examples,):
        raise TrainingError(
            f"an objective must return one loss for each example, shape [{examples}], not {list(losses.shape)}"
        )
    return losses


@dataclass(frozen=True)
class Predicted:
    """A reference that each merchant makes itself before it trains, on its own private examples and without gradient.

    by: the student of the downlink (``global``), or the one that the merchant had trained when it last took part
    (``previous``; the downlink's until then). what: probabilities ``[examples, classes]``, or representations
    ``[examples, width]`` (``models.prediction.representation``).
    """

    by: Literal["global", "previous"]
    what: Literal["probabilities", "representation"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    data: whose examples, the merchant's ``private`` ones or the shared ``proxy``.
    epochs or steps: how long; exactly one of them.
    references: tensors row-aligned with the whole proxy set (``[proxy, ...]``); a private phase has ``labels``.
    predicted: further references, of a private phase, which the merchant makes itself.
    hidden: whether the objective reads hidden states, which are then among the outputs.
    proximal_mu: weight of the pull toward the weights that training began from, mu/2 * ||w - w0||^2
    (FedProx, Li et al. 2020, eq. 2); 0 for none.
    learning_rate_scale: factor on the configured learning rate.
    corrected: whether the learner's own ``correction`` is added to the gradient of every step, after it was clipped or
    noised. It moves rows of tables that no example touches too, so all of them are trained and sent.
    """

    objective: Objective
    data: Literal["private", "proxy"] = "private"
    epochs: float | None = None
    steps: int | None = None
    references: References = field(default_factory=dict)
    predicted: Mapping[str, Predicted] = field(default_factory=dict)
    hidden: bool = False
    proximal_mu: float = 0.0
    learning_rate_scale: float = 1.0
    corrected: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase lasts a number of epochs or a number of steps: give exactly one")
        if self.predicted and self.data != "private":
            raise ValueError("references are predicted on private examples: a phase on the proxy set has its own")

    def run(self, model: nn.Module, batch: Encoded) -> Outputs:
        """What ``model`` gives for a collated batch, hidden states among it if the objective reads them."""
        outputs: Outputs = model(batch, hidden=True) if self.hidden else model(batch)
        return outputs


@dataclass(frozen=True)
class Plan:
    """Phases in the order in which they are trained.

    pair: whether a merchant trains the downlink's student and one of its own, which it keeps, as one (``models.pair``).
    """

    phases: tuple[Phase, ...] = ()
    pair: bool = False

    @property
    def predicted(self) -> Mapping[str, Predicted]:
        """References that the merchant makes, of all phases."""
        return {name: wanted for phase in self.phases for name, wanted in phase.predicted.items()}

    @property
    def looks_back(self) -> bool:
        """Whether a merchant must keep its trained student for the next round."""
        return any(wanted.by == "previous" for wanted in self.predicted.values())
