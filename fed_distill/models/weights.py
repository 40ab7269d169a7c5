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
    """Weights, or updates of them, of which some tables are present in part.

    arrays: by parameter name. rows: for each partly present table, the sorted int64 row numbers that
    ``arrays`` holds of it; all other rows are as they were in the downlink. counts: for each of those tables, int64,
    how often the examples that were trained on use each of the rows; fractions where the server has cut them.
    """

    arrays: Weights
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)


def update_of(trained: PartialWeights, start: Weights) -> PartialWeights:
    """How far each floating-point weight moved from ``start``, in float32.

    ValueError, naming it, for a weight that ``start`` has not, or that moved by what is not finite.
    """
    moved = {}
    for name, value in trained.arrays.items():
        if name not in start:
            raise ValueError(f"weight {name!r} is not in the downlink, of which it would be an update")
        if not value.is_floating_point():
            continue
        rows = trained.rows.get(name)
        before = start[name] if rows is None else start[name][rows]
        moved[name] = value.detach().cpu().float() - before.detach().cpu().float()
        if not is_finite(moved[name]):
            raise ValueError(f"the update of {name} is not finite: train at a lower learning rate")
    return PartialWeights(moved, trained.rows, trained.counts)


def updated(start: Weights, update: PartialWeights) -> dict[str, Tensor]:
    """``start`` with ``update`` added, in the types of ``start``; what is not in the update stays as it is."""
    whole = dict(start)
    for name, change in update.arrays.items():
        value, rows = start[name], update.rows.get(name)
        if rows is None:
            whole[name] = (value.double() + change).to(value.dtype)
        else:
            whole[name] = value.clone()
            whole[name][rows] = (value[rows].double() + change).to(value.dtype)
    return whole


def times(values: Weights, factor: float) -> Weights:
    """Each tensor times ``factor``."""
    return {name: value * factor for name, value in values.items()}


def norm_of(values: Iterable[Tensor]) -> float:
    """L2 norm of all tensors together, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(value.double())) for value in values))


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite: the extremes are NaN if any value is, at a tenth of the time of ``isfinite``."""
    if not value.numel() or not value.is_floating_point():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())
