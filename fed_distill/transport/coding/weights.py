"""Serialization of updates and of weights in downlinks, and error feedback.

Error feedback (Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback
fixes SignSGD and other gradient compression schemes", ICML 2019, algorithm 2): the compression error of an update
is added to the merchant's next one, so that the sum of decoded updates differs from that of the updates only by the
last residual.
"""

import numpy as np
import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.seeds import Randomness
from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.integers import (
    read_counts,
    read_fixed,
    read_sorted,
    write_counts,
    write_fixed,
    write_sorted,
)
from fed_distill.transport.coding.stream import Reader, Writer
from fed_distill.transport.coding.updates import Float16

_ABSENT, _WHOLE, _IN_PART = range(3)


def write_weights(out: Writer, update: PartialWeights, base: Weights, chain: Chain, randomness: Randomness) -> None:
    """Write an update of ``base``; the reader has its names, shapes and types.

    For each weight: whether it is present, or partial; lossless row numbers and counts; and its values.

    :param randomness: seed of stochastic rounding
    """
    names = sorted(base)
    states = [_IN_PART if name in update.rows else _WHOLE if name in update.arrays else _ABSENT for name in names]
    write_fixed(out, np.array(states, dtype=np.uint8), 2)
    for name, state in zip(names, states, strict=True):
        if state == _ABSENT:
            continue
        if state == _IN_PART:
            rows = update.rows[name]
            if name not in update.counts:
                raise ValueError(f"the partial table {name} has no use counts of its rows")
            out.number(len(rows), 4)
            write_sorted(out, rows.numpy())
            write_counts(out, update.counts[name].numpy())
        value = update.arrays[name]
        if _coded(value):
            _chain_for(value.dim(), chain).encode(value.float(), out, seeds.torch_stream(*randomness, name))
        else:
            out.array(value.numpy())


def read_weights(source: Reader, base: Weights, chain: Chain) -> PartialWeights:
    """Inverse of ``write_weights``, up to errors of ``chain``; raise ValueError for invalid bytes."""
    names = sorted(base)
    arrays: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for name, state in zip(names, read_fixed(source, len(names), 2), strict=True):
        if state == _ABSENT:
            continue
        shape = tuple(base[name].shape)
        if state == _IN_PART:
            size = source.number(4)
            if not shape or size > shape[0]:
                raise ValueError(f"it has {size} rows of {name}, whose shape is {list(shape)}")
            rows[name] = torch.from_numpy(read_sorted(source, size, shape[0]))
            counts[name] = torch.from_numpy(read_counts(source, size))
            shape = (size, *shape[1:])
        elif state != _WHOLE:
            raise ValueError(f"its flag for the presence of {name} is invalid")
        if _coded(base[name]):
            arrays[name] = _chain_for(len(shape), chain).decode(shape, source)
        else:
            kind = base[name].numpy().dtype
            arrays[name] = torch.from_numpy(source.array(kind, int(np.prod(shape)))).reshape(shape)
    return PartialWeights(arrays, rows, counts)


def with_residual(update: PartialWeights, residual: PartialWeights) -> PartialWeights:
    """Add the residual of earlier updates to ``update``, for the rows that are sent now."""
    arrays = dict(update.arrays)
    for name, kept in residual.arrays.items():
        if name in arrays:
            arrays[name] = arrays[name] + _at(kept, residual.rows.get(name), update.rows.get(name))
    return PartialWeights(arrays, update.rows, update.counts)


def residual_of(update: PartialWeights, received: PartialWeights, before: PartialWeights) -> PartialWeights:
    """Return the new residual: the compression error of ``update``, and the previous residual for other rows.

    :param update: update with the residual ``before`` added
    :param received: decoded update
    :param before: previous residual
    """
    arrays, rows = dict(before.arrays), dict(before.rows)
    for name, value in update.arrays.items():
        if not _coded(value):
            continue
        left, sent = value - received.arrays[name], update.rows.get(name)
        if sent is not None:
            known = torch.from_numpy(np.union1d(rows[name], sent)) if name in rows else sent
            whole = _at(arrays[name], rows[name], known) if name in rows else torch.zeros_like(left)
            whole[torch.searchsorted(known, sent)] = left
            left, rows[name] = whole, known
        arrays[name] = left
    return PartialWeights(arrays, rows)


def _at(kept: Tensor, kept_rows: Tensor | None, rows: Tensor | None) -> Tensor:
    """Select ``rows`` of ``kept``, which has the sorted ``kept_rows``; missing rows are 0. Rows are None for a whole
    array: a merchant sends the same partial tables in all rounds."""
    if kept_rows is None or rows is None:
        return kept
    found = torch.zeros(len(rows), *kept.shape[1:])
    if len(kept_rows):
        place = torch.searchsorted(kept_rows, rows).clamp_max(len(kept_rows) - 1)
        there = kept_rows[place] == rows
        found[there] = kept[place[there]]
    return found


def _chain_for(dimensions: int, chain: Chain) -> Chain:
    """Return the chain for an array: float16 for vectors and scalars if ``chain`` is lossy."""
    return Chain((Float16(),)) if chain.stages and dimensions < 2 else chain


def _coded(value: Tensor) -> bool:
    return value.is_floating_point()
