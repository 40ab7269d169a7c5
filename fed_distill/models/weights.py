"""Weights of a model by parameter name, whole or with some rows of its tables."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""A whole model's weights by parameter name."""


@dataclass(frozen=True)
class PartialWeights:
    """Weights, or updates of them, with some partial tables.

    arrays: by parameter name. rows: for each partial table, the sorted int64 row numbers of its rows in ``arrays``; all
    other rows are as in the downlink. counts: for each partial table, use counts of the rows by training examples,
    int64, or fractions after truncation at the server.
    """

    arrays: Weights
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)


def update_of(trained: PartialWeights, start: Weights) -> PartialWeights:
    """Return the difference of each floating-point weight from ``start``, in float32.

    :raises ValueError: ``start`` lacks a weight, or a difference is not finite; the message has the weight's name
    """
    moved = {}
    for name, value in trained.arrays.items():
        if name not in start:
            raise ValueError(f"the update of weight {name!r} is not possible: the downlink does not have it")
        if not value.is_floating_point():
            continue
        rows = trained.rows.get(name)
        before = start[name] if rows is None else start[name][rows]
        moved[name] = value.detach().cpu().float() - before.detach().cpu().float()
        if not is_finite(moved[name]):
            raise ValueError(f"the update of {name} is not finite: train at a lower learning rate")
    return PartialWeights(moved, trained.rows, trained.counts)


def updated(start: Weights, update: PartialWeights) -> dict[str, Tensor]:
    """Add ``update`` to ``start``, in the types of ``start``; weights that are not in the update are unchanged."""
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
    """Multiply each tensor by ``factor``."""
    return {name: value * factor for name, value in values.items()}


def norm_of(values: Iterable[Tensor]) -> float:
    """Return the L2 norm over all tensors, in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(value.double())) for value in values))


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite: the extremes are NaN if any value is, at a tenth of the time of ``isfinite``."""
    if not value.numel() or not value.is_floating_point():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())
