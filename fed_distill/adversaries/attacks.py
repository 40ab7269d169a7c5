"""Attacks of a poisoned merchant: on the labels that it trains on, on the uplink that it sends, or on both.

An attack sees what its merchant sees, and works on every part that a method may send. A part is multiplied: weights,
low-rank updates and control variates as updates of the downlink, probabilities as logits, softmax(factor * log p), so
that the sign of a soft label can be flipped like that of an update. Of votes, which have neither, the sign alone
counts. How many examples an uplink counts for is left as it is: what a merchant announced is checked elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.transport.coding.weights import applied, update_of
from fed_distill.transport.messages import ClassMeans, Downlink, LowRankUpdate, Uplink


class Attack(Protocol):
    """What a liar does otherwise than an honest merchant."""

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """What it trains on in the place of its ``labels``, int64 ``[examples]``."""

    def uplink(self, up: Uplink, down: Downlink, classes: int) -> Uplink:
        """What it sends in the place of ``up``. Raises UplinkRejected for an update that is not finite."""


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

    def uplink(self, up: Uplink, down: Downlink, classes: int) -> Uplink:
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

    def uplink(self, up: Uplink, down: Downlink, classes: int) -> Uplink:
        """start - scale * (trained - start)."""
        return multiplied(up, down, -self.scale, classes)


@dataclass(frozen=True)
class Scaled:
    """A student trained on wrong labels, scaled up to outweigh the honest: model replacement (Bagdasaryan et al., "How
    to backdoor federated learning", AISTATS 2020, equation 3).

    scale: factor on the update; the number of merchants replaces the mean by one liar's student. Soft labels become
    as much surer; votes are as sure as can be, and are of the wrong labels alone.
    """

    scale: PositiveFloat = 10.0

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Reversed, as by ``label-flip``."""
        return reversed_classes(labels, classes)

    def uplink(self, up: Uplink, down: Downlink, classes: int) -> Uplink:
        """start + scale * (trained - start)."""
        return multiplied(up, down, self.scale, classes)


def reversed_classes(labels: Tensor, classes: int) -> Tensor:
    """Class y as classes - 1 - y; of an odd number the middle one stays."""
    return classes - 1 - labels


def multiplied(up: Uplink, down: Downlink, factor: float, classes: int) -> Uplink:
    """``up`` with all that its merchant learned times ``factor``, whichever parts it has.

    Raises UplinkRejected for weights that are no finite update of the downlink's.
    """
    votes = up.votes if up.votes is None or factor > 0.0 else reversed_classes(up.votes, classes)
    return replace(
        up,
        weights=None if up.weights is None else _moved(up.merchant, up.weights, down.weights or {}, factor),
        low_rank_update=None if up.low_rank_update is None else _farther(up.low_rank_update, factor),
        control_variate=None if up.control_variate is None else _times(up.control_variate, factor),
        soft_labels=None if up.soft_labels is None else powered(up.soft_labels, factor),
        class_means=None if up.class_means is None else _surer(up.class_means, factor),
        votes=votes,
    )


def powered(probabilities: Tensor, exponent: float) -> Tensor:
    """Rows ``[rows, classes]`` with every probability to the power of ``exponent``, summing to 1: logits times it."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return (exponent * probabilities.clamp_min(tiny).log()).softmax(dim=-1)


def _moved(merchant: str, sent: PartialWeights, start: Weights, factor: float) -> PartialWeights:
    try:
        update = update_of(sent, start)
    except ValueError as error:
        raise UplinkRejected(f"merchant {merchant}: {error}") from error
    return applied(replace(update, arrays=_times(update.arrays, factor)), start)


def _farther(update: LowRankUpdate, factor: float) -> LowRankUpdate:
    plain = replace(update.plain, arrays=_times(update.plain.arrays, factor))
    return LowRankUpdate(plain, _times(update.thin, factor), update.wide)


def _surer(means: ClassMeans, factor: float) -> ClassMeans:
    there = means.present.unsqueeze(1)
    return ClassMeans(torch.where(there, powered(means.probabilities, factor), 0.0), means.present)


def _times(values: Weights, factor: float) -> Mapping[str, Tensor]:
    return {name: value * factor if value.is_floating_point() else value for name, value in values.items()}
