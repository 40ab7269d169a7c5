"""What one round carries, typed: the downlink to a merchant and the uplink from it.

Every part is optional; a method fills in what it needs. How the parts become bytes is the business of
``transport.records``, not of a method.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from fed_distill.models.weights import PartialWeights, Weights

Part = Literal["weights", "soft_labels", "votes", "answered", "class_means", "control_variate", "low_rank_update"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of an uplink that are computed from a merchant's data."""


@dataclass(frozen=True)
class LowRankUpdate:
    """How far weights moved from the downlink's, matrices as products of two thin factors (``transport.low_rank``).

    plain: updates of what is not factored, and the ``rows`` and ``counts`` of every table that is there in part.
    thin, wide: of each factored matrix ``[rank, rows]`` and ``[rank, columns]``; thin^T wide is its update.
    """

    plain: PartialWeights
    thin: Weights = field(default_factory=dict)
    wide: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class ClassMeans:
    """What a student makes of examples of each class, on average.

    probabilities: row ``c`` is the mean of the student's class probabilities over the examples whose label is ``c``,
    ``[classes, classes]``; 0 where there are none. present: whether there are any, bool ``[classes]``.
    """

    probabilities: Tensor
    present: Tensor


@dataclass(frozen=True)
class Downlink:
    """Server to merchant. round: 1-based. weights: the global student. soft_labels: probabilities on the
    proxy set ``[proxy, classes]``. scalars: a method's own small numbers. class_means: of all merchants together.
    control_variate: the mean gradient of all merchants, by weight."""

    round: int
    weights: Weights | None = None
    soft_labels: Tensor | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    class_means: ClassMeans | None = None
    control_variate: Weights | None = None


@dataclass(frozen=True)
class Uplink:
    """Merchant to server.

    examples: training examples behind it (the weight of a mean). soft_labels: probabilities on the proxy set
    ``[proxy, classes]``, or of those proxy examples only that are ``answered`` (bool ``[proxy]``), in their order.
    metrics: what the merchant measured of itself (loss, accuracy on its own test set). votes: class indices on the
    proxy set, int64 ``[proxy]``. class_means: over its private examples. control_variate: how its mean gradient
    changed, by weight. low_rank_update: how its student's weights moved.
    """

    merchant: str
    examples: int
    weights: PartialWeights | None = None
    soft_labels: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    votes: Tensor | None = None
    answered: Tensor | None = None
    class_means: ClassMeans | None = None
    control_variate: Weights | None = None
    low_rank_update: LowRankUpdate | None = None

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that were computed from the merchant's data and are there."""
        return frozenset(name for name in PARTS if getattr(self, name) is not None)
