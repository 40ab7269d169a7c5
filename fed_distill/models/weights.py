"""Weights of a model by parameter name, whole or of some rows of its tables."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
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


def update_of(sent: PartialWeights, base: Weights) -> PartialWeights:
    """How far each weight moved from ``base``, in float32; what is not floating-point as it is.

    ValueError, naming it, for a weight that ``base`` has not, or that moved by what is not finite.
    """
    moved = {}
    for name, value in sent.arrays.items():
        if name not in base:
            raise ValueError(f"weight {name!r} is not in the downlink, against which it would be coded")
        value = value.detach().cpu()
        start = _rows_of(base[name], sent.rows.get(name))
        moved[name] = value.float() - start.float() if value.is_floating_point() else value
        if not bool(torch.isfinite(moved[name]).all()):
            raise ValueError(f"the update of {name} is not finite: train at a lower learning rate")
    return PartialWeights(moved, sent.rows, sent.counts)


def applied(update: PartialWeights, base: Weights) -> PartialWeights:
    """Inverse of ``update_of``, in the types of ``base``."""
    arrays = {}
    for name, change in update.arrays.items():
        start = _rows_of(base[name], update.rows.get(name))
        arrays[name] = (start.float() + change).to(start.dtype) if start.is_floating_point() else change
    return PartialWeights(arrays, update.rows, update.counts)


def times(values: Weights, factor: float) -> Weights:
    """Each floating-point tensor times ``factor``."""
    return {name: value * factor if value.is_floating_point() else value for name, value in values.items()}


def norm_of(values: Iterable[Tensor]) -> float:
    """L2 norm of all floating-point tensors together, in float64."""
    floats = [value.double() for value in values if value.is_floating_point()]
    return math.sqrt(sum(float((value * value).sum()) for value in floats))


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite: the extremes are NaN if any value is, at a tenth of the time of ``isfinite``."""
    if not value.numel() or not value.is_floating_point():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())


def _rows_of(value: Tensor, rows: Tensor | None) -> Tensor:
    return value.detach().cpu() if rows is None else value.detach().cpu()[rows]
