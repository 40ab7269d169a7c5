"""Serialization of a merchant's soft labels: all of them, or only changes since the last uplink.

Predictions converge over the rounds, and unchanged ones need not be sent again (soft-label caching: Azuma et al.,
"Soft-label caching and sharpening for communication-efficient federated distillation", 2025). In the paper, labels
expire after a number of rounds; here a label is sent when it has changed relative to the merchant's copy of the
server's cache. Both sides decode the same bytes, so that both copies are equal.
"""

import torch
from torch import Tensor

from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.integers import read_sorted, write_sorted
from fed_distill.transport.coding.probabilities import normalized
from fed_distill.transport.coding.stream import Reader, Writer

_ALL, _CHANGED = range(2)
_NO_DRAW = torch.Generator()
"""Generator for stages, which is not used: stages for soft labels round to the nearest."""


def write_soft_labels(values: Tensor, chain: Chain) -> bytes:
    """Serialize all probabilities ``[proxy, classes]``."""
    out = Writer()
    chain.encode(values.detach().cpu().float().contiguous(), out, _NO_DRAW)
    return out.content()


def read_soft_labels(source: Reader, shape: tuple[int, int], chain: Chain) -> Tensor:
    """Inverse of ``write_soft_labels``, up to errors of ``chain``; rows sum to 1."""
    values = chain.decode(shape, source)
    return normalized(values) if chain.stages else values


def write_changed(values: Tensor, chain: Chain, known: Tensor | None, tolerance: float) -> bytes:
    """Serialize the rows with a decoded probability that differs by more than ``tolerance`` from the server's.

    :param known: the server's soft labels ``[proxy, classes]``; None to serialize all rows
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
    """Inverse of ``write_changed``: all probabilities of the merchant, with unchanged rows from ``known``.

    :raises ValueError: the bytes are invalid, or unknown rows are missing
    """
    kind = source.number(1)
    if kind == _ALL:
        return read_soft_labels(source, shape, chain)
    if kind != _CHANGED:
        raise ValueError("its flag for complete soft labels is invalid")
    if known is None or tuple(known.shape) != shape:
        raise ValueError("it omits soft labels that were never sent")
    count = source.number(4)
    if count > shape[0]:
        raise ValueError(f"it has soft labels of {count} of {shape[0]} proxy examples")
    rows = torch.from_numpy(read_sorted(source, count, shape[0]))
    values = known.clone()
    values[rows] = read_soft_labels(source, (count, shape[1]), chain)
    return values


def _shape(values: Tensor) -> tuple[int, int]:
    rows, classes = values.shape
    return rows, classes
