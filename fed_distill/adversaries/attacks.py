"""Attacks of a Byzantine merchant: on the labels that it trains on, on the uplink that it sends, or on both.

An attack sees what its merchant sees, and works on every payload that a method may send, since each says how it is
multiplied (``Payload.scaled``): updates and control variates as they are, probabilities as logits,
softmax(factor * log p), so that the sign of a soft label can be flipped like that of an update. Of votes, which have
neither, the sign alone counts. How many examples an uplink counts for is left as it is: what a merchant announced is
checked elsewhere.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.payloads.base import Context
from fed_distill.transport.messages import Uplink


class Attack(Protocol):
    """What a Byzantine merchant does otherwise than an honest one."""

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """What it trains on in the place of its ``labels``, int64 ``[examples]``."""

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """What it sends in the place of ``up``. Raises UplinkRejected for a payload that cannot be scaled."""


@dataclass(frozen=True)
class LabelFlip:
    """Honest training on wrong labels (Tolpegin et al., "Data poisoning attacks against federated learning systems",
    ESORICS 2020).

    flip: ``reverse``, class y becomes classes - 1 - y, as in Fang et al., USENIX Security 2020: of grades the best
    becomes the worst; ``next``, it becomes the class after it, the last one the first.
    """

    flip: Literal["reverse", "next"] = "reverse"

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Other classes."""
        return reversed_classes(labels, classes) if self.flip == "reverse" else (labels + 1) % classes

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """What came of training."""
        return up


@dataclass(frozen=True)
class SignFlip:
    """The opposite of what was learned (Li et al., "RSA: Byzantine-robust stochastic aggregation methods", AAAI 2019).

    scale: how far into the wrong direction, in lengths of the honest update.
    """

    scale: PositiveFloat = 1.0

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """The right ones."""
        return labels

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """Minus ``scale`` times the update."""
        return multiplied(up, -self.scale, context)


@dataclass(frozen=True)
class Scaled:
    """A student trained on wrong labels, scaled up to outweigh the honest: model replacement (Bagdasaryan et al., "How
    to backdoor federated learning", AISTATS 2020, equation 3).

    scale: factor on the update; the number of merchants replaces the mean by one Byzantine merchant's student. Soft
    labels become as much surer; votes are as sure as can be, and are of the wrong labels alone.
    """

    scale: PositiveFloat = 10.0

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Reversed, as by ``label-flip``."""
        return reversed_classes(labels, classes)

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """``scale`` times the update."""
        return multiplied(up, self.scale, context)


def reversed_classes(labels: Tensor, classes: int) -> Tensor:
    """Class y as classes - 1 - y; of an odd number the middle one stays."""
    return classes - 1 - labels


def multiplied(up: Uplink, factor: float, context: Context) -> Uplink:
    """``up`` with all that its merchant learned times ``factor``, whichever payloads it has (``Payload.scaled``).

    Raises UplinkRejected for one that cannot be scaled.
    """
    try:
        return replace(up, payloads=tuple(payload.scaled(factor, context) for payload in up.payloads))
    except ValueError as error:
        raise UplinkRejected(f"merchant {up.merchant}: {error}") from error
