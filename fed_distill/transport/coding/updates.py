"""Stages for updates of weights, whose entries are typically near zero.

Matrices and larger arrays pass through the chain; arrays of fewer dimensions (biases, norms, scalars) are always sent
as float16, as they are small. In every stage, rows without changes remain exactly unchanged, including a table's
padding row.
"""

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveInt
from fed_distill.payloads import low_rank_update as low_rank
from fed_distill.transport.coding.base import Decode, Encode, Shape
from fed_distill.transport.coding.integers import read_fixed, read_sorted, write_fixed, write_sorted
from fed_distill.transport.coding.stream import Reader, Writer

_LARGEST_HALF = 65504.0
_LARGEST_SCALE = 0x7F7F
"""The largest finite bfloat16, as bits."""


@dataclass(frozen=True)
class Float16:
    """Half the bytes: rounded to 11 bits (relative error 2^-11; below 6e-5 absolute error 3e-8), at most 65504."""

    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write two bytes per entry."""
        out.array(value.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().numpy())

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Inverse of ``encode``, up to rounding."""
        return torch.from_numpy(source.array(np.float16, int(np.prod(shape)))).float().reshape(shape)


class _Quantized:
    """Entries as integer multiples of a step with ``bits`` bits each, and unbiased stochastic rounding.

    The step is the row's largest magnitude divided by the number of steps on either side of zero, 127 or 7, and rounded
    up to bfloat16; the error of an entry is at most one step. Stochastic rounding as in Alistarh et al., "QSGD:
    communication-efficient SGD via gradient quantization and encoding", NeurIPS 2017, section 3.1, with the largest
    magnitude in place of the norm.
    """

    bits: ClassVar[int]
    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    @property
    def levels(self) -> int:
        """Number of steps on either side of zero."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write a step of two bytes per row, then ``bits`` bits per entry."""
        rows = _rows(value)
        steps = _write_scales(out, rows.abs().amax(dim=1) / self.levels)
        scaled = torch.where(steps > 0, rows / steps, 0.0)
        whole = torch.floor(scaled + torch.rand(scaled.shape, generator=draw)).clamp(-self.levels, self.levels)
        write_fixed(out, (whole.to(torch.int16) + self.levels).numpy(), self.bits)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read steps times integers."""
        rows, columns = _row_shape(shape)
        steps = _read_scales(source, rows)
        whole = torch.from_numpy(read_fixed(source, rows * columns, self.bits)) - self.levels
        if bool((whole > self.levels).any()):
            raise ValueError(f"it has quantized values above {self.levels} steps")
        return (whole.reshape(rows, columns).float() * steps).reshape(shape)


@dataclass(frozen=True)
class Int8(_Quantized):
    """A quarter of the bytes, and two per row; error at most (1 + 2^-7)/127 of the row's largest entry; unbiased."""

    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4(_Quantized):
    """An eighth of the bytes, and two per row; error at most (1 + 2^-7)/7 of the row's largest entry; unbiased."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Sign:
    """One bit per entry: each becomes its row's mean magnitude with its own sign. Biased: keep ``error_feedback`` on.

    EF-signSGD's compressor (Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes",
    ICML 2019, algorithm 1), row by row. Zeros remain zero; if a changed row has any, each entry of the array takes one
    more bit.
    """

    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write a scale of two bytes per row, a bit per entry, and if necessary a mask of zeros."""
        rows = _rows(value)
        moved = rows != 0
        sizes = rows.double().abs().sum(dim=1) / moved.sum(dim=1).clamp_min(1)
        _write_scales(out, sizes.float())
        masked = not bool(moved[moved.any(dim=1)].all())
        out.number(int(masked), 1)
        write_fixed(out, (rows > 0).numpy(), 1)
        if masked:
            write_fixed(out, moved.numpy(), 1)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read scales times signs."""
        rows, columns = _row_shape(shape)
        scales = _read_scales(source, rows)
        masked = source.number(1)
        if masked > 1:
            raise ValueError("its flag for zero entries is invalid")
        values = (torch.from_numpy(read_fixed(source, rows * columns, 1)) * 2 - 1).reshape(rows, columns)
        if masked:
            values = values * torch.from_numpy(read_fixed(source, rows * columns, 1)).reshape(rows, columns)
        return (values.float() * scales).reshape(shape)


@dataclass(frozen=True)
class TopK:
    """The ``share`` of an array's entries with the largest magnitudes; the others become zero.

    Sparsified updates (Aji and Heafield, EMNLP 2017; Stich et al., "Sparsified SGD with memory", NeurIPS 2018). Biased:
    keep ``error_feedback`` on. An entry's error is at most the smallest kept magnitude. Zeros are never sent. A
    position takes about log2(e / share) bits.

    share: share of an array's entries, in (0, 1]; at least one entry is kept.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    last: ClassVar[bool] = False
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write the number, positions and values of the entries."""
        flat = value.reshape(-1)
        chosen = flat.abs().topk(self.most(flat.numel())).indices
        places = chosen[flat[chosen] != 0].sort().values
        out.number(len(places), 4)
        write_sorted(out, places.numpy())
        rest(flat[places])

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read values into an array of zeros."""
        entries = int(np.prod(shape))
        count = source.number(4)
        if count > self.most(entries):
            raise ValueError(f"it has {count} of {entries} entries, more than the share of {self.share:g}")
        places = torch.from_numpy(read_sorted(source, count, entries))
        flat = torch.zeros(entries)
        flat[places] = rest((count,))
        return flat.reshape(shape)

    def most(self, entries: int) -> int:
        """Return the maximum number of sent entries."""
        return min(max(1, ceil(self.share * entries)), entries)


@dataclass(frozen=True)
class SVD:
    """The best low-rank approximation of a matrix (larger arrays by their first dimension), as two thin factors.

    Biased: keep ``error_feedback`` on. If the factors have no fewer numbers, the matrix itself is passed on.

    energy: share of the squared singular values that is kept. rank: maximum rank; none: determined by energy only.
    """

    energy: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    rank: PositiveInt | None = None
    last: ClassVar[bool] = False
    first: ClassVar[bool] = True

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write the rank, 0 for the matrix itself, and the factors."""
        rows = _rows(value)
        found = low_rank.factors(rows, self.energy, self.rank)
        if found is None:
            out.number(0, 4)
            rest(value)
            return
        thin, wide = found
        out.number(len(thin), 4)
        rest(thin)
        rest(wide)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read the product of the factors."""
        rows, columns = _row_shape(shape)
        rank = source.number(4)
        if not rank:
            return rest(shape)
        if rank > low_rank.most_rank(rows, columns):
            raise ValueError(f"it has factors of rank {rank} for a matrix {[rows, columns]}")
        thin = rest((rank, rows))
        return low_rank.product(thin, rest((rank, columns))).reshape(shape)


def _row_shape(shape: Shape) -> tuple[int, int]:
    """Return the shape as a matrix: the first dimension by all others; fewer dimensions are one row."""
    if len(shape) < 2:
        return 1, int(np.prod(shape))
    return shape[0], int(np.prod(shape[1:]))


def _rows(value: Tensor) -> Tensor:
    return value.reshape(_row_shape(tuple(value.shape)))


def _write_scales(out: Writer, scales: Tensor) -> Tensor:
    """Write non-negative scales ``[rows]`` as bfloat16, rounded up, and return the rounded scales ``[rows, 1]``.

    bfloat16 has the range of float32, so that scales of small updates do not become zero. A scale becomes larger by
    less than 2^-7 of itself; below 2^-126, by less than 2^-133.
    """
    bits = scales.contiguous().numpy().view(np.uint32)
    upper = np.minimum((bits >> 16) + ((bits & 0xFFFF) != 0), _LARGEST_SCALE).astype(np.uint16)
    out.array(upper)
    return _as_scales(upper)


def _read_scales(source: Reader, count: int) -> Tensor:
    """Inverse of ``_write_scales``; raise ValueError unless all are finite and not negative."""
    upper = source.array(np.uint16, count)
    if (upper > _LARGEST_SCALE).any():
        raise ValueError("it has scales that are negative or not finite")
    return _as_scales(upper)


def _as_scales(upper: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]") -> Tensor:
    return torch.from_numpy((upper.astype(np.uint32) << 16).view(np.float32)).unsqueeze(1)
