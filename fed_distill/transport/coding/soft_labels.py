"""A merchant's soft labels in bytes: all of them, or those only that changed since the server had them last.

Merchants' answers settle over the rounds, and what has settled need not be sent again (soft-label caching: Azuma et
al., "Soft-label caching and sharpening for communication-efficient federated distillation", 2025). There, labels expire
after a number of rounds; here a label is sent when it moved, which the merchant sees, because it keeps what the server
has received of it. Both sides decode the same bytes, so that both have the same.
"""

import torch
from torch import Tensor

from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.integers import read_sorted, write_sorted
from fed_distill.transport.coding.probabilities import normalized
from fed_distill.transport.coding.stream import Reader, Writer

_ALL, _CHANGED = range(2)
_NO_DRAW = torch.Generator()
"""Stages for soft labels round to the nearest."""


def write_soft_labels(values: Tensor, chain: Chain) -> bytes:
    """Probabilities ``[proxy, classes]``, all of them."""
    out = Writer()
    chain.encode(values.detach().cpu().float().contiguous(), out, _NO_DRAW)
    return out.content()


def read_soft_labels(source: Reader, shape: tuple[int, int], chain: Chain) -> Tensor:
    """Inverse of ``write_soft_labels``, but for what ``chain`` loses: rows that sum to 1 again."""
    values = chain.decode(shape, source)
    return normalized(values) if chain.stages else values


def write_changed(values: Tensor, chain: Chain, known: Tensor | None, tolerance: float) -> bytes:
    """Probabilities, or only the rows in which one would arrive more than ``tolerance`` from what the server has.

    known: what it has, ``[proxy, classes]``; None for nothing.
    """
    out, data = Writer(), write_soft_labels(values, chain)
    arriving = read_soft_labels(Reader(data), _shape(values), chain)
    moved = None if known is None else ((arriving - known).abs() > tolerance).any(dim=1)
    if moved is None or bool(moved.all()):
        out.number(_ALL, 1)
        out.raw(data)
        return out.content()
    rows = moved.nonzero().reshape(-1)
    out.number(_CHANGED, 1)
    out.number(len(rows), 4)
    write_sorted(out, rows.numpy())
    out.raw(write_soft_labels(values[rows], chain))
    return out.content()


def read_changed(source: Reader, shape: tuple[int, int], chain: Chain, known: Tensor | None) -> Tensor:
    """All probabilities of the merchant, of which ``write_changed`` sent what was not ``known``.

    ValueError for what it cannot have written, or if it left out what is not known.
    """
    kind = source.number(1)
    if kind == _ALL:
        return read_soft_labels(source, shape, chain)
    if kind != _CHANGED:
        raise ValueError("it does not say whether all soft labels are there")
    if known is None or tuple(known.shape) != shape:
        raise ValueError("it leaves out soft labels that were never sent")
    count = source.number(4)
    if count > shape[0]:
        raise ValueError(f"it holds soft labels of {count} of {shape[0]} proxy examples")
    rows = torch.from_numpy(read_sorted(source, count, shape[0]))
    values = known.clone()
    values[rows] = read_soft_labels(source, (count, shape[1]), chain)
    return values


def _shape(values: Tensor) -> tuple[int, int]:
    rows, classes = values.shape
    return rows, classes
