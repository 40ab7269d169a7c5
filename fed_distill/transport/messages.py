"""Typed messages of a round: the downlink to a merchant and the uplink from it, each with payloads.

The method declares their kinds (``Method.sends``, ``Method.receives``); ``transport.records`` serializes them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from fed_distill.errors import TrainingError
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Payload
from fed_distill.payloads.student_weights import StudentWeights

P = TypeVar("P", bound=Payload)
Kinds = tuple[type[Payload], ...]
"""Kinds of payloads, as a method declares them."""


class Carrier:
    """Base class of messages, with at most one payload of each kind."""

    payloads: tuple[Payload, ...]

    def __post_init__(self) -> None:
        if len(self.kinds) != len(self.payloads):
            raise ValueError(f"two payloads of one kind: {', '.join(one.name for one in self.payloads)}")

    @property
    def kinds(self) -> frozenset[type[Payload]]:
        """The kinds of its payloads."""
        return frozenset(map(type, self.payloads))

    def get(self, kind: type[P]) -> P | None:
        """Return the payload of a kind; None if there is none."""
        return next((one for one in self.payloads if type(one) is kind), None)

    def need(self, kind: type[P]) -> P:
        """Return the payload of a kind; raise TrainingError if there is none."""
        found = self.get(kind)
        if found is None:
            raise TrainingError(f"the {type(self).__name__.lower()} has no {kind.name}, which the method requires")
        return found

    def _with(self, payloads: Iterable[Payload]) -> tuple[Payload, ...]:
        new = {type(one): one for one in payloads}
        kept = tuple(new.pop(type(one), one) for one in self.payloads)
        return *kept, *new.values()


@dataclass(frozen=True)
class Downlink(Carrier):
    """Server to merchant.

    :param round: number of the round, 1-based
    :param payloads: payloads for all merchants
    :param scalars: numbers of the method, by name
    """

    round: int
    payloads: tuple[Payload, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)

    def having(self, *payloads: Payload) -> Self:
        """The same with ``payloads``, each in the place of one of its kind that may be there."""
        return replace(self, payloads=self._with(payloads))

    @property
    def weights(self) -> Weights:
        """Weights of the global student; empty without any."""
        sent = self.get(StudentWeights)
        return {} if sent is None else sent.arrays


@dataclass(frozen=True)
class Uplink(Carrier):
    """Merchant to server.

    :param merchant: name of the merchant
    :param examples: number of training examples, its weight in a mean
    :param payloads: payloads to send
    :param metrics: metrics of the merchant (loss, accuracy on its own test set)
    """

    merchant: str
    examples: int
    payloads: tuple[Payload, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def having(self, *payloads: Payload) -> Self:
        """The same with ``payloads``, each in the place of one of its kind that may be there."""
        return replace(self, payloads=self._with(payloads))
