"""Whole numbers in few bits, without loss: fixed widths, Golomb-Rice codes, and sorted numbers by their gaps.

Row numbers and the places of a sparse update are sorted, so their gaps are small, and a Golomb-Rice code takes within
a few hundredths of a bit of what a geometric distribution of gaps needs (Golomb, "Run-length encodings", 1966; Rice,
1979; of sparse updates: Sattler et al., "Robust and communication-efficient federated learning from non-iid data",
TNNLS 2020).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fed_distill.transport.coding.stream import Reader, Writer

LIMIT = 2**31
"""Numbers are below this."""
_WIDEST = 31
Integers = NDArray[np.int64]


def write_fixed(out: Writer, values: NDArray[Any], width: int) -> None:
    """Non-negative numbers below ``2**width``, ``width`` bits each."""
    flat = values.reshape(-1)
    bits = np.empty((len(flat), width), dtype=np.uint8)
    for place in range(width):
        bits[:, place] = (flat >> place) & 1
    out.raw(np.packbits(bits, bitorder="little").tobytes())


def read_fixed(source: Reader, count: int, width: int) -> Integers:
    """Inverse of ``write_fixed``: ``[count]``."""
    packed = np.frombuffer(source.raw((count * width + 7) // 8), dtype=np.uint8)
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    values = np.zeros(count, dtype=np.int64)
    for place in range(width):
        values |= bits[:, place].astype(np.int64) << place
    return values


def write_counts(out: Writer, values: Integers) -> None:
    """Non-negative numbers below ``LIMIT``, the smaller the cheaper. ValueError for others.

    The low ``width`` bits of each in fixed width, then the rest in unary (so many zeros and a one).
    """
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= LIMIT):
        raise ValueError(f"numbers between {values.min()} and {values.max()} do not fit: they must be 0 to {LIMIT - 1}")
    width = _best_width(values)
    quotients = values >> width
    ends = np.cumsum(quotients + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    packed = np.packbits(unary, bitorder="little").tobytes()
    out.number(width, 1)
    out.number(len(packed), 4)
    out.raw(packed)
    write_fixed(out, values & ((1 << width) - 1), width)


def read_counts(source: Reader, count: int, below: int = LIMIT) -> Integers:
    """Inverse of ``write_counts``: ``[count]``. ValueError unless all are below ``below``, at most ``LIMIT``."""
    width, size = source.number(1), source.number(4)
    # at the best width the quotients sum to 2 * count at most: else one bit more would save more than it costs
    if width > _WIDEST or size > (3 * count + 7) // 8:
        raise ValueError("its whole numbers are not coded as they should be")
    unary = np.frombuffer(source.raw(size), dtype=np.uint8)
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if len(ends) != count:
        raise ValueError(f"it holds {len(ends)} whole numbers where {count} are due")
    quotients = np.diff(ends, prepend=-1) - 1
    if (quotients > below >> width).any():
        raise ValueError(f"it holds whole numbers that are not below {below}")
    values: Integers = (quotients << width) | read_fixed(source, count, width)
    if (values >= below).any():
        raise ValueError(f"it holds whole numbers that are not below {below}")
    return values


def write_sorted(out: Writer, values: Integers) -> None:
    """Distinct non-negative numbers in rising order, by their gaps. ValueError for others."""
    write_counts(out, np.diff(values, prepend=-1) - 1)


def read_sorted(source: Reader, count: int, below: int) -> Integers:
    """Inverse of ``write_sorted``: ``[count]``. ValueError unless all are below ``below``, at most ``LIMIT``."""
    values: Integers = np.cumsum(read_counts(source, count, below) + 1) - 1
    if count and int(values[-1]) >= below:
        raise ValueError(f"it holds whole numbers that are not below {below}")
    return values


def _best_width(values: Integers) -> int:
    """How many low bits to keep apart so that all take the least: each number that many, one, and its quotient."""
    sizes = [len(values) * (width + 1) + int((values >> width).sum()) for width in range(_WIDEST + 1)]
    return int(np.argmin(sizes))
