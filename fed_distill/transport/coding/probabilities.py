"""Stages for soft labels: rows of class probabilities, which the receiver normalises to sum to 1."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fed_distill.config import PositiveInt
from fed_distill.transport.coding.base import Decode, Encode, Shape
from fed_distill.transport.coding.integers import read_fixed, write_fixed
from fed_distill.transport.coding.stream import Reader, Writer
from fed_distill.transport.coding.updates import Float16

_LEAST_HALF = 2.0**-24
"""The smallest positive float16."""
_LEAST_LEFT = 1e-3
"""Minimum total probability of classes that are not sent, as logarithms of rounded zeros would be infinite."""


@dataclass(frozen=True)
class Float16Probabilities(Float16):
    """Half the bytes: rounded to 11 bits (relative error 2^-11; below 6e-5 absolute error 3e-8). One that is rounded
    to 0 arrives as 2^-25, for finite logarithms."""

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Inverse of ``encode``, up to rounding."""
        return super().decode(shape, source, rest).clamp_min(_LEAST_HALF / 2)


class _Steps:
    """Probabilities rounded to ``2**bits - 1`` equal steps between 0 and 1, with ``bits`` bits each.

    The error of a probability is at most half a step before its row is normalised.
    """

    bits: ClassVar[int]
    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    @property
    def levels(self) -> int:
        """Number of steps between 0 and 1."""
        return (1 << self.bits) - 1

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write ``bits`` bits per entry, without a scale."""
        write_fixed(out, (value.clamp(0.0, 1.0) * self.levels).round().to(torch.int32).numpy(), self.bits)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read steps; 0 becomes a quarter of a step, the mean of values rounded to 0, for finite logarithms."""
        whole = torch.from_numpy(read_fixed(source, int(np.prod(shape)), self.bits))
        return (whole.float().clamp_min(0.25) / self.levels).reshape(shape)


@dataclass(frozen=True)
class Int8Probabilities(_Steps):
    """A quarter of the bytes; the error of a probability is at most 1/510 before its row is normalised."""

    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4Probabilities(_Steps):
    """An eighth of the bytes; the error of a probability is at most 1/30 before its row is normalised."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class LogInt4Probabilities:
    """An eighth of the bytes; a probability is off by a factor of at most e^0.25 before its row is normalised, and one
    below e^-7.5 = 0.0006 arrives as that. Small probabilities, of which int4 makes one, are what a temperature above 1
    transfers. Only whole rows can be normalised, so that it does not follow top-k."""

    step: ClassVar[float] = 0.5
    last: ClassVar[bool] = True
    first: ClassVar[bool] = True

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write each entry's negative logarithm in half nats, with 4 bits."""
        levels = (-value.clamp(1e-30, 1.0).log() / self.step).round().clamp(0, 15)
        write_fixed(out, levels.to(torch.int32).numpy(), 4)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Inverse of ``encode``."""
        levels = torch.from_numpy(read_fixed(source, int(np.prod(shape)), 4))
        return torch.exp(-self.step * levels.float()).reshape(shape)


@dataclass(frozen=True)
class TopKProbabilities:
    """The most probable classes of each example; the remaining probability is distributed uniformly over the others.

    classes: maximum number of kept classes.
    """

    classes: PositiveInt = 1
    last: ClassVar[bool] = False
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write the classes in ascending order, with the minimum number of bits, and their probabilities."""
        every = value.shape[1]
        if self.classes >= every:
            rest(value)
            return
        chosen = value.topk(self.classes, dim=1).indices.sort(dim=1).values
        write_fixed(out, chosen.numpy(), _width(every))
        rest(value.gather(1, chosen))

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read rows of probabilities, with the remaining probability distributed uniformly."""
        examples, every = shape
        if self.classes >= every:
            return rest(shape)
        chosen = torch.from_numpy(read_fixed(source, examples * self.classes, _width(every)))
        chosen = chosen.reshape(examples, self.classes)
        if bool((chosen >= every).any()) or bool((chosen.diff(dim=1) <= 0).any()):
            raise ValueError(f"its classes must be distinct and from 0 to {every - 1}")
        kept = rest((examples, self.classes))
        left = (1.0 - kept.sum(dim=1, keepdim=True)).clamp_min(_LEAST_LEFT) / (every - self.classes)
        return left.expand(examples, every).scatter(1, chosen, kept)


def normalized(values: Tensor) -> Tensor:
    """Normalise decoded rows to sum to 1; a row of zeros becomes uniform."""
    sums = values.sum(dim=1, keepdim=True)
    return torch.where(sums == 0.0, 1.0 / max(values.shape[1], 1), values / torch.where(sums == 0.0, 1.0, sums))


def _width(classes: int) -> int:
    """Return the number of bits of a class index."""
    return (classes - 1).bit_length()
