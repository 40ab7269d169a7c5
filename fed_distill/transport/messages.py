"""What one round carries, typed: the downlink to a merchant and the uplink from it.

Every part is optional; a method fills in what it needs. How the parts become bytes is the business of
``transport.records``, not of a method.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

Weights = Mapping[str, Tensor]
"""A whole model's weights by parameter name."""


Part = Literal["weights", "soft_labels", "votes"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Parts of an uplink that are computed from a merchant's data."""


@dataclass(frozen=True)
class PartialWeights:
    """Weights of which some tables are present in part.

    arrays: by parameter name. rows: for each partly present table, the sorted int64 row numbers that
    ``arrays`` holds of it; all other rows are as they were in the downlink. counts: for each of those tables, int64,
    how often the examples that were trained on use each of the rows.
    """

    arrays: Weights
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Downlink:
    """Server to merchant. round: 1-based. weights: the global student. soft_labels: probabilities on the
    proxy set ``[proxy, classes]``. scalars: a method's own small numbers."""

    round: int
    weights: Weights | None = None
    soft_labels: Tensor | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Uplink:
    """Merchant to server. examples: training examples behind it (the weight of a mean). votes: class indices on the
    proxy set, int64 ``[proxy]``. metrics: what the merchant measured of itself (loss, accuracy on its own test set)."""

    merchant: str
    examples: int
    weights: PartialWeights | None = None
    soft_labels: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    votes: Tensor | None = None

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that were computed from the merchant's data and are there."""
        return frozenset(name for name in PARTS if getattr(self, name) is not None)
