"""Byte streams of encoded tensors in a fixed order, without headers.

Both ends have the shapes, so that the bytes contain values only, and a reader need not trust names, shapes or types. A
reader allocates memory only for bytes that exist.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Writer:
    """Collects values, little-endian, one after another."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Append raw bytes."""
        self._pieces.append(data)

    def number(self, value: int, size: int) -> None:
        """Append a non-negative integer in ``size`` bytes; raise OverflowError if it does not fit."""
        self._pieces.append(value.to_bytes(size, "little"))

    def array(self, values: NDArray[Any]) -> None:
        """Append the values of an array in row-major order."""
        self._pieces.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())

    def content(self) -> bytes:
        """Return all bytes written so far."""
        return b"".join(self._pieces)


class Reader:
    """Reads the bytes of a ``Writer``; raises ValueError if there are too few or too many."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = memoryview(data), 0

    def raw(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        left = len(self._data) - self._place
        if size > left:
            raise ValueError(f"it ends too early: {size} bytes are expected and {left} remain")
        self._place += size
        return bytes(self._data[self._place - size : self._place])

    def number(self, size: int) -> int:
        """Inverse of ``Writer.number``."""
        return int.from_bytes(self.raw(size), "little")

    def array(self, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """Return the next ``count`` values of a type, ``[count]``, in their own memory."""
        kind = np.dtype(dtype)
        little = np.frombuffer(self.raw(count * kind.itemsize), dtype=kind.newbyteorder("<"))
        return little.astype(kind)

    def finish(self) -> None:
        """Raise ValueError if bytes remain."""
        left = len(self._data) - self._place
        if left:
            raise ValueError(f"it has {left} extra bytes")
