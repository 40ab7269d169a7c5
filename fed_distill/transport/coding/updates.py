"""Stages for updates of weights. An update is how far training moved a weight, so its typical entry is near zero.

Matrices and larger arrays go through the chain; arrays of fewer dimensions (biases, norms, scalars) travel as float16
in every chain: they are too few to be worth a loss. Rows that did not move stay where they were, exactly, in every
stage: a table's row of padding among them.
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
        """Two bytes an entry."""
        out.array(value.clamp(-_LARGEST_HALF, _LARGEST_HALF).half().numpy())

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Inverse of ``encode`` but for the rounding."""
        return torch.from_numpy(source.array(np.float16, int(np.prod(shape)))).float().reshape(shape)


class _Quantized:
    """Entries as whole multiples of a step, ``bits`` bits each, rounded up or down at random so that the mean is right.

    The step is the row's largest magnitude over the number of steps on either side of zero, 127 or 7; the error of an
    entry is below one step. Stochastic rounding as in Alistarh et al., "QSGD: communication-efficient SGD via gradient
    quantization and encoding", NeurIPS 2017, section 3.1, with the largest magnitude in place of the norm.
    """

    bits: ClassVar[int]
    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    @property
    def levels(self) -> int:
        """Steps on either side of zero."""
        return (1 << (self.bits - 1)) - 1

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """A step of two bytes for each row, then ``bits`` bits an entry."""
        rows = _rows(value)
        steps = _write_scales(out, rows.abs().amax(dim=1) / self.levels)
        scaled = torch.where(steps > 0, rows / steps, 0.0)
        whole = torch.floor(scaled + torch.rand(scaled.shape, generator=draw)).clamp(-self.levels, self.levels)
        write_fixed(out, (whole.to(torch.int16) + self.levels).numpy(), self.bits)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Steps times whole numbers."""
        rows, columns = _row_shape(shape)
        steps = _read_scales(source, rows)
        whole = torch.from_numpy(read_fixed(source, rows * columns, self.bits)) - self.levels
        if bool((whole > self.levels).any()):
            raise ValueError(f"it holds quantized values beyond {self.levels} steps")
        return (whole.reshape(rows, columns).float() * steps).reshape(shape)


@dataclass(frozen=True)
class Int8(_Quantized):
    """A quarter of the bytes, and two a row: an entry is off by less than 1/127 of its row's largest; unbiased."""

    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4(_Quantized):
    """An eighth of the bytes, and two a row: an entry is off by less than 1/7 of its row's largest; unbiased."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Sign:
    """One bit an entry: each becomes its row's mean magnitude with its own sign. Biased: keep ``error_feedback`` on.

    EF-signSGD's compressor (Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes",
    ICML 2019, algorithm 1), a row at a time. Entries of zero stay zero; where a row that moved has any, each entry of
    the array takes one bit more.
    """

    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """A scale of two bytes for each row, then a bit an entry, and if need be which entries are zero."""
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
        """Scales times signs."""
        rows, columns = _row_shape(shape)
        scales = _read_scales(source, rows)
        masked = source.number(1)
        if masked > 1:
            raise ValueError("it does not say whether entries are zero")
        values = (torch.from_numpy(read_fixed(source, rows * columns, 1)) * 2 - 1).reshape(rows, columns)
        if masked:
            values = values * torch.from_numpy(read_fixed(source, rows * columns, 1)).reshape(rows, columns)
        return (values.float() * scales).reshape(shape)


@dataclass(frozen=True)
class TopK:
    """The ``share`` of an array's entries with the largest magnitudes; the others are taken as unmoved.

    Sparsified updates (Aji and Heafield, EMNLP 2017; Stich et al., "Sparsified SGD with memory", NeurIPS 2018). Biased:
    keep ``error_feedback`` on. An entry's error is at most the least magnitude that was kept. Entries that did not move
    are never sent. Their places take about log2(e / share) bits each.

    share: of an array's entries, in (0, 1], at least one.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    last: ClassVar[bool] = False
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """How many, where, and their values."""
        flat = value.reshape(-1)
        chosen = flat.abs().topk(self.most(flat.numel())).indices
        places = chosen[flat[chosen] != 0].sort().values
        out.number(len(places), 4)
        write_sorted(out, places.numpy())
        rest(flat[places])

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Zeros with the values in their places."""
        entries = int(np.prod(shape))
        count = source.number(4)
        if count > self.most(entries):
            raise ValueError(f"it holds {count} of {entries} entries, more than the share of {self.share:g}")
        places = torch.from_numpy(read_sorted(source, count, entries))
        flat = torch.zeros(entries)
        flat[places] = rest((count,))
        return flat.reshape(shape)

    def most(self, entries: int) -> int:
        """Entries that are sent at most."""
        return min(max(1, ceil(self.share * entries)), entries)


@dataclass(frozen=True)
class SVD:
    """The best low-rank approximation of a matrix (larger arrays by their first dimension), as two thin factors.

    Biased: keep ``error_feedback`` on. Where factors would not be fewer numbers, the matrix itself is handed on.

    energy: share of the squared singular values that is kept. rank: at most; none for what energy asks for.
    """

    energy: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    rank: PositiveInt | None = None
    last: ClassVar[bool] = False
    first: ClassVar[bool] = True

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """The rank, 0 for the matrix itself, and the factors."""
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
        """The factors' product."""
        rows, columns = _row_shape(shape)
        rank = source.number(4)
        if not rank:
            return rest(shape)
        if rank > low_rank.most_rank(rows, columns):
            raise ValueError(f"it holds factors of rank {rank} for a matrix {[rows, columns]}")
        thin = rest((rank, rows))
        return low_rank.product(thin, rest((rank, columns))).reshape(shape)


def _row_shape(shape: Shape) -> tuple[int, int]:
    """As a matrix: the first dimension by all others; fewer dimensions are one row."""
    if len(shape) < 2:
        return 1, int(np.prod(shape))
    return shape[0], int(np.prod(shape[1:]))


def _rows(value: Tensor) -> Tensor:
    return value.reshape(_row_shape(tuple(value.shape)))


def _write_scales(out: Writer, scales: Tensor) -> Tensor:
    """Write non-negative scales ``[rows]`` as bfloat16, rounded up; give them as the receiver has them, ``[rows, 1]``.

    bfloat16 has the range of float32, so that no scale of a small update becomes zero.
    """
    bits = scales.contiguous().numpy().view(np.uint32)
    upper = np.minimum((bits >> 16) + ((bits & 0xFFFF) != 0), _LARGEST_SCALE).astype(np.uint16)
    out.array(upper)
    return _as_scales(upper)


def _read_scales(source: Reader, count: int) -> Tensor:
    """Inverse of ``_write_scales``. ValueError unless all are finite and not negative."""
    upper = source.array(np.uint16, count)
    if (upper > _LARGEST_SCALE).any():
        raise ValueError("it holds scales that are negative or not finite")
    return _as_scales(upper)


def _as_scales(upper: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]") -> Tensor:
    return torch.from_numpy((upper.astype(np.uint32) << 16).view(np.float32)).unsqueeze(1)
