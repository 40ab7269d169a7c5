"""Lossless coding of integers: fixed widths, Golomb-Rice codes, and gaps of sorted numbers.

Row numbers and positions of a sparse update are sorted, so that their gaps are small. A Golomb-Rice code is within a
few hundredths of a bit of the optimum for geometrically distributed gaps (Golomb, "Run-length encodings", 1966; Rice,
1979; of sparse updates: Sattler et al., "Robust and communication-efficient federated learning from non-iid data",
TNNLS 2020).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fed_distill.transport.coding.stream import Reader, Writer

LIMIT = 2**31
"""Exclusive upper bound of numbers."""
_WIDEST = 31
Integers = NDArray[np.int64]


def write_fixed(out: Writer, values: NDArray[Any], width: int) -> None:
    """Write non-negative numbers below ``2**width`` with ``width`` bits each."""
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
    """Write non-negative numbers below ``LIMIT`` with a Golomb-Rice code; raise ValueError for others.

    The low ``width`` bits of all numbers are followed by the quotients in unary (zeros and a one).
    """
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= LIMIT):
        raise ValueError(f"numbers must be from 0 to {LIMIT - 1}, not from {values.min()} to {values.max()}")
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
    """Inverse of ``write_counts``: ``[count]``; raise ValueError unless all are below ``below``, at most ``LIMIT``."""
    width, size = source.number(1), source.number(4)
    # at the optimal width the quotients sum to at most 2 * count: otherwise one more bit would reduce the size
    if width > _WIDEST or size > (3 * count + 7) // 8:
        raise ValueError("its integers are encoded incorrectly")
    unary = np.frombuffer(source.raw(size), dtype=np.uint8)
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if len(ends) != count:
        raise ValueError(f"it has {len(ends)} integers instead of {count}")
    quotients = np.diff(ends, prepend=-1) - 1
    if (quotients > below >> width).any():
        raise ValueError(f"it has integers that are not below {below}")
    values: Integers = (quotients << width) | read_fixed(source, count, width)
    if (values >= below).any():
        raise ValueError(f"it has integers that are not below {below}")
    return values


def write_sorted(out: Writer, values: Integers) -> None:
    """Write distinct non-negative numbers in ascending order by their gaps; raise ValueError for others."""
    write_counts(out, np.diff(values, prepend=-1) - 1)


def read_sorted(source: Reader, count: int, below: int) -> Integers:
    """Inverse of ``write_sorted``: ``[count]``; raise ValueError unless all are below ``below``, at most ``LIMIT``."""
    values: Integers = np.cumsum(read_counts(source, count, below) + 1) - 1
    if count and int(values[-1]) >= below:
        raise ValueError(f"it has integers that are not below {below}")
    return values


def _best_width(values: Integers) -> int:
    """Return the width that minimises the total size: width, one bit and the quotient for each number."""
    sizes = [len(values) * (width + 1) + int((values >> width).sum()) for width in range(_WIDEST + 1)]
    return int(np.argmin(sizes))
