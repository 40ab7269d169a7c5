"""Stages for soft labels: probabilities of the classes, a row an example, which sum to 1 again at the receiver."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fed_distill.config import PositiveInt
from fed_distill.transport.coding.base import Decode, Encode, Shape
from fed_distill.transport.coding.integers import read_fixed, write_fixed
from fed_distill.transport.coding.stream import Reader, Writer

_LEAST_LEFT = 1e-3
"""What classes that are not sent share at least: rounding may leave them nothing, and logarithms are taken of it."""


class _Steps:
    """Probabilities rounded to the nearest of ``2**bits - 1`` equal steps between 0 and 1, ``bits`` bits each.

    A probability is off by half a step at most before its row is made to sum to 1.
    """

    bits: ClassVar[int]
    last: ClassVar[bool] = True
    first: ClassVar[bool] = False

    @property
    def levels(self) -> int:
        """Steps between 0 and 1."""
        return (1 << self.bits) - 1

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """``bits`` bits an entry, and no scale."""
        write_fixed(out, (value.clamp(0.0, 1.0) * self.levels).round().to(torch.int32).numpy(), self.bits)

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Whole numbers of steps; a quarter of one for 0, the middle of what was rounded to it: logarithms are taken of
        it."""
        whole = torch.from_numpy(read_fixed(source, int(np.prod(shape)), self.bits))
        return (whole.float().clamp_min(0.25) / self.levels).reshape(shape)


@dataclass(frozen=True)
class Int8Probabilities(_Steps):
    """A quarter of the bytes: a probability is off by 1/510 at most, before its row is made to sum to 1."""

    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4Probabilities(_Steps):
    """An eighth of the bytes: a probability is off by 1/30 at most, before its row is made to sum to 1."""

    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class TopKProbabilities:
    """The most probable classes of each example; the others share evenly what is left of the probability.

    classes: how many are kept; all of them where a task has no more.
    """

    classes: PositiveInt = 1
    last: ClassVar[bool] = False
    first: ClassVar[bool] = False

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Which classes, rising, in the fewest whole bits each, and their probabilities ``[proxy, classes]``."""
        every = value.shape[1]
        if self.classes >= every:
            rest(value)
            return
        chosen = value.topk(self.classes, dim=1).indices.sort(dim=1).values
        write_fixed(out, chosen.numpy(), _width(every))
        rest(value.gather(1, chosen))

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Rows of probabilities, the even share of the rest among them."""
        examples, every = shape
        if self.classes >= every:
            return rest(shape)
        chosen = torch.from_numpy(read_fixed(source, examples * self.classes, _width(every)))
        chosen = chosen.reshape(examples, self.classes)
        if bool((chosen >= every).any()) or bool((chosen.diff(dim=1) <= 0).any()):
            raise ValueError(f"it names classes twice, or outside 0 to {every - 1}")
        kept = rest((examples, self.classes))
        left = (1.0 - kept.sum(dim=1, keepdim=True)).clamp_min(_LEAST_LEFT) / (every - self.classes)
        return left.expand(examples, every).scatter(1, chosen, kept)


def normalized(values: Tensor) -> Tensor:
    """Rows that sum to 1, of rows that were coded; one of zeros alone says nothing and becomes even."""
    sums = values.sum(dim=1, keepdim=True)
    return torch.where(sums == 0.0, 1.0 / max(values.shape[1], 1), values / torch.where(sums == 0.0, 1.0, sums))


def _width(classes: int) -> int:
    """Bits of a class number."""
    return (classes - 1).bit_length()
