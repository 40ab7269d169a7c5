"""Safe reading of received arrays: headers are validated before memory is allocated.

Flower sends an array as the bytes of an npy file, and ``numpy.load`` allocates the size in its header: 128 bytes with a
header for 3e9 empty strings take 2.9 GB. Here a header must have exactly the form that ``numpy.save`` writes, with a
type that a tensor can hold and the size of the bytes that follow.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

MOST_DIMENSIONS = 8
"""Maximum number of dimensions of an array."""
_STYPE = "numpy.ndarray"
_TYPES = {
    np.lib.format.dtype_to_descr(np.dtype(name)): np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
}
"""Types of tensors in this machine's byte order, by their names in a header."""
_MAGIC = b"\x93NUMPY\x01\x00"
_FIRST = len(_MAGIC) + 2
_LONGEST_HEADER = 512
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-z]\d{1,2})', 'fortran_order': False, 'shape': \(((?:\d{1,10}(?:, \d{1,10})*,?)?)\), \} *\n"
)


@dataclass(frozen=True)
class ArrayLayout:
    """Validated header of an array. start: offset of its values in its bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout_of(array: Array) -> ArrayLayout:
    """Return the layout of a received array.

    :raises ValueError: ``numpy.save`` cannot have written it as numbers in row-major order
    """
    data = array.data
    size = int.from_bytes(data[len(_MAGIC) : _FIRST], "little")
    if array.stype != _STYPE or not data.startswith(_MAGIC) or size > _LONGEST_HEADER:
        raise ValueError("an array is not an npy file of version 1")
    found = _HEADER.fullmatch(data[_FIRST : _FIRST + size])
    if found is None:
        raise ValueError("the header of an array does not have numpy's form in row-major order")
    kind, sizes = found[1].decode(), found[2].decode()
    shape = tuple(int(one) for one in sizes.split(",") if one.strip())
    if kind not in _TYPES or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"an array has type {kind} and {len(shape)} dimensions, which messages do not use")
    layout = ArrayLayout(_TYPES[kind], shape, _FIRST + size)
    if len(data) - layout.start != layout.nbytes:
        raise ValueError(f"the header of an array gives {layout.nbytes} bytes, but it has {len(data) - layout.start}")
    return layout


def read_array(array: Array) -> NDArray[Any]:
    """Return the values of a received array, in their own memory.

    :raises ValueError: as ``layout_of``, or for booleans other than 0 and 1, whose sums would be wrong
    """
    layout = layout_of(array)
    if not layout.nbytes:
        return np.empty(layout.shape, layout.dtype)
    values = np.frombuffer(array.data, layout.dtype, offset=layout.start)
    if layout.dtype == np.bool_ and int(values.view(np.uint8).max()) > 1:
        raise ValueError("a boolean array has values other than 0 and 1")
    return values.reshape(layout.shape).copy()
