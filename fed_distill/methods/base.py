"""A federated method: what is sent, what is trained, and how it is merged. Nothing else.

A method is a frozen dataclass whose fields are its options. It never opens a data loader, never calls an
optimizer and never knows which runtime carries it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

from torch import Tensor

from fed_distill.training.plan import Plan
from fed_distill.transport.messages import Downlink, Part, PartialWeights, Uplink, Weights

__all__ = ["GlobalState", "Method", "Part", "Trained", "replace"]


@dataclass(frozen=True)
class GlobalState:
    """What the server knows between rounds.

    round: rounds completed. weights: the global student. teacher_labels: the teacher's probabilities on the
    proxy set ``[proxy, classes]``. consensus: the merchants' merged probabilities on it, once there are any.
    server_plan: what the server itself trains after a merge (phases over the proxy set), before evaluation.
    average: the configured aggregator, from the merchants' weights to the next global weights. tally: from votes
    ``[proxy, classes]`` to answers, int64 ``[proxy]`` and negative where there is none.
    """

    round: int
    weights: Weights
    teacher_labels: Tensor
    average: Callable[[Weights, Iterable[Uplink]], Weights]
    tally: Callable[[Tensor], Tensor]
    consensus: Tensor | None = None
    server_plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True)
class Trained:
    """One merchant after training. weights: what changed (whole, or the touched rows). predict_proxy: the
    trained student's probabilities on the proxy set ``[proxy, classes]``, computed when called."""

    merchant: str
    examples: int
    weights: PartialWeights
    predict_proxy: Callable[[], Tensor]


class Method(Protocol):
    """The two halves of a federated algorithm, side by side.

    ``personal`` declares that a merchant keeps its own student between rounds (in the site's store), and
    that students may differ by merchant; otherwise each round starts from ``Downlink.weights``. ``sends`` declares all
    parts of its uplinks: a site sends no other, and what privacy is promised rests on it.
    """

    personal: ClassVar[bool]
    sends: ClassVar[tuple[Part, ...]]

    def broadcast(self, state: GlobalState) -> Downlink:
        """Server, start of a round: what every merchant gets."""

    def plan(self, down: Downlink) -> Plan:
        """Merchant: the phases to train."""

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Merchant: what leaves it."""

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Server, while the merchants' uplinks come in: the next state, its ``round`` one higher.

        ``up`` is ordered by merchant and iterated once; keep sums of it rather than the uplinks themselves, so that
        memory does not grow with the number of merchants.
        """
