"""The bytes of coded tensors, written and read in one fixed order, without any header of their own.

Both ends know which shapes to expect, so the bytes hold values alone: no names, shapes or types that a reader would
have to believe. A reader gives no more than there is, and asks for the memory of what it gives only.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Writer:
    """Collects values, little-endian, one after another."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._pieces.append(data)

    def number(self, value: int, size: int) -> None:
        """A non-negative whole number in ``size`` bytes. OverflowError if it does not fit."""
        self._pieces.append(value.to_bytes(size, "little"))

    def array(self, values: NDArray[Any]) -> None:
        """The values of an array in row-major order."""
        self._pieces.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())

    def content(self) -> bytes:
        """Everything written so far."""
        return b"".join(self._pieces)


class Reader:
    """Gives back what a ``Writer`` collected. Raises ValueError where there is less, or more, than is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = memoryview(data), 0

    def raw(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        left = len(self._data) - self._place
        if size > left:
            raise ValueError(f"it ends too early: {size} bytes are due and {left} are left")
        self._place += size
        return bytes(self._data[self._place - size : self._place])

    def number(self, size: int) -> int:
        """Inverse of ``Writer.number``."""
        return int.from_bytes(self.raw(size), "little")

    def array(self, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """The next ``count`` values of a type, ``[count]``; they own their memory."""
        kind = np.dtype(dtype)
        little = np.frombuffer(self.raw(count * kind.itemsize), dtype=kind.newbyteorder("<"))
        return little.astype(kind)

    def finish(self) -> None:
        """Raise ValueError if anything is left."""
        left = len(self._data) - self._place
        if left:
            raise ValueError(f"{left} bytes are left over")
