"""Attacks of a Byzantine merchant: on its training labels, on its uplink, or on both.

An attack has the information of its merchant. It applies to every payload, since each defines its scaling
(``Payload.scaled``): updates and control variates are multiplied, probabilities are multiplied as logits,
softmax(factor * log p), so that the sign of soft labels can be flipped like that of updates. For votes, only the sign
matters. The number of examples of an uplink does not change: it is validated against the announced one elsewhere.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.payloads.base import Context
from fed_distill.transport.messages import Uplink


class Attack(Protocol):
    """Deviations of a Byzantine merchant from an honest one."""

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return its training labels instead of ``labels``, int64 ``[examples]``."""

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """Return its uplink instead of ``up``; raise UplinkRejected for a payload that cannot be scaled."""


@dataclass(frozen=True)
class LabelFlip:
    """Honest training on wrong labels (Tolpegin et al., "Data poisoning attacks against federated learning systems",
    ESORICS 2020).

    flip: ``reverse``: class y becomes classes - 1 - y, as in Fang et al., USENIX Security 2020, so that the best grade
    becomes the worst; ``next``: a class becomes the next one, and the last becomes the first.
    """

    flip: Literal["reverse", "next"] = "reverse"

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return flipped labels."""
        return reversed_classes(labels, classes) if self.flip == "reverse" else (labels + 1) % classes

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """Return the uplink unchanged."""
        return up


@dataclass(frozen=True)
class SignFlip:
    """A sign-flipped update (Li et al., "RSA: Byzantine-robust stochastic aggregation methods", AAAI 2019).

    scale: length of the update, relative to the honest one.
    """

    scale: PositiveFloat = 1.0

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels unchanged."""
        return labels

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """Return the update times minus ``scale``."""
        return multiplied(up, -self.scale, context)


@dataclass(frozen=True)
class Scaled:
    """Model replacement with a student trained on wrong labels (Bagdasaryan et al., "How to backdoor federated
    learning", AISTATS 2020, equation 3).

    scale: factor of the update; with the number of merchants, the mean becomes one Byzantine merchant's student. Soft
    labels are scaled as logits; votes follow from the wrong labels only.
    """

    scale: PositiveFloat = 10.0

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return reversed labels, as in ``label-flip``."""
        return reversed_classes(labels, classes)

    def uplink(self, up: Uplink, context: Context) -> Uplink:
        """Return the update times ``scale``."""
        return multiplied(up, self.scale, context)


def reversed_classes(labels: Tensor, classes: int) -> Tensor:
    """Map class y to classes - 1 - y."""
    return classes - 1 - labels


def multiplied(up: Uplink, factor: float, context: Context) -> Uplink:
    """Scale all payloads of ``up`` by ``factor`` (``Payload.scaled``); raise UplinkRejected if one cannot be scaled."""
    try:
        return replace(up, payloads=tuple(payload.scaled(factor, context) for payload in up.payloads))
    except ValueError as error:
        raise UplinkRejected(f"merchant {up.merchant}: {error}") from error
