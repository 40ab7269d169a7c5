"""Arrays off the wire, read only once their headers are known to be true.

Flower carries an array as the bytes of an npy file, and ``numpy.load`` allocates what the header of one promises: 128
bytes that promise 3e9 empty strings take 2.9 GB. Here a header must be exactly of the form that ``numpy.save`` writes,
and promise numbers that a tensor can hold and as many bytes as follow it, before anything is allocated.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

MOST_DIMENSIONS = 8
"""Dimensions of an array at most."""
_STYPE = "numpy.ndarray"
_TYPES = {
    np.lib.format.dtype_to_descr(np.dtype(name)): np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
}
"""Types of this machine's byte order that tensors have, by their names in a header."""
_MAGIC = b"\x93NUMPY\x01\x00"
_FIRST = len(_MAGIC) + 2
_LONGEST_HEADER = 512
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-z]\d{1,2})', 'fortran_order': False, 'shape': \(((?:\d{1,10}(?:, \d{1,10})*,?)?)\), \} *\n"
)


@dataclass(frozen=True)
class ArrayLayout:
    """What an array's header says, and that is true. start: of its values among its bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout_of(array: Array) -> ArrayLayout:
    """The layout of an array from outside. ValueError unless ``numpy.save`` can have written it: plain numbers in rows,
    little more than a header before them, and nothing after."""
    data = array.data
    size = int.from_bytes(data[len(_MAGIC) : _FIRST], "little")
    if array.stype != _STYPE or not data.startswith(_MAGIC) or size > _LONGEST_HEADER:
        raise ValueError("an array that is no npy file of version 1")
    found = _HEADER.fullmatch(data[_FIRST : _FIRST + size])
    if found is None:
        raise ValueError("an array whose header is not as numpy writes it, in rows")
    kind, sizes = found[1].decode(), found[2].decode()
    shape = tuple(int(one) for one in sizes.split(",") if one.strip())
    if kind not in _TYPES or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"an array of type {kind} and {len(shape)} dimensions, which no message has")
    layout = ArrayLayout(_TYPES[kind], shape, _FIRST + size)
    if len(data) - layout.start != layout.nbytes:
        raise ValueError(f"an array that promises {layout.nbytes} bytes and has {len(data) - layout.start}")
    return layout


def read_array(array: Array) -> NDArray[Any]:
    """The values of an array from outside, in memory of their own. ValueError as ``layout_of``, and for truth values
    other than 0 and 1, which count as more than one where they are summed."""
    layout = layout_of(array)
    if not layout.nbytes:
        return np.empty(layout.shape, layout.dtype)
    values = np.frombuffer(array.data, layout.dtype, offset=layout.start)
    if layout.dtype == np.bool_ and int(values.view(np.uint8).max()) > 1:
        raise ValueError("an array of truth values that are neither 0 nor 1")
    return values.reshape(layout.shape).copy()
