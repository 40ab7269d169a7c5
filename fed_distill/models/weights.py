"""Weights of a model by parameter name, whole or of some rows of its tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Weights = Mapping[str, Tensor]
"""A whole model's weights by parameter name."""


@dataclass(frozen=True)
class PartialWeights:
    """Weights of which some tables are present in part.

    arrays: by parameter name. rows: for each partly present table, the sorted int64 row numbers that
    ``arrays`` holds of it; all other rows are as they were in the downlink. counts: for each of those tables, int64,
    how often the examples that were trained on use each of the rows; fractions where the server has cut them.
    """

    arrays: Weights
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
