"""A chain of stages: each makes what is sent smaller, and hands the numbers that are left to the next.

A top-k stage, for example, writes which entries it keeps and hands their values on; an int8 stage after it writes
these in 8 bits. What no stage has coded at the end is written as float32. Both ends build the same chain from the same
experiment and know the shape of what comes, so that a message says neither how it is coded nor how large it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fed_distill.errors import ConfigError
from fed_distill.transport.coding.stream import Reader, Writer

Shape = tuple[int, ...]
Encode = Callable[[Tensor], None]
"""Codes a float32 tensor with the stages that follow."""
Decode = Callable[[Shape], Tensor]
"""Reads a float32 tensor of a known shape, coded with the stages that follow."""


class Stage(Protocol):
    """One step of a chain: a frozen dataclass whose fields are its options.

    ``last``: it leaves no numbers to a stage after it. ``first``: it codes arrays, and a stage before it would leave
    it none. Values are finite float32 tensors of two dimensions or more
    from the caller, of any number from another stage, never empty. What a stage reads it checks: ValueError for what
    its own ``encode`` cannot have written.
    """

    last: ClassVar[bool]
    first: ClassVar[bool]

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write ``value``; numbers that a later stage may code go to ``rest``. ``draw``: for random rounding."""

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """What the receiver makes of it, of ``shape``."""


@dataclass(frozen=True)
class Chain:
    """Stages in the order in which they code. ConfigError if one follows that has nothing left, or nothing of its
    kind, to code."""

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages[:-1], 1):
            if stage.last:
                raise ConfigError(
                    f"transport: stage {number} ({type(stage).__name__}) leaves nothing to code for the stage after "
                    "it: put it last"
                )
        for number, stage in enumerate(self.stages[1:], 2):
            if stage.first:
                raise ConfigError(
                    f"transport: stage {number} ({type(stage).__name__}) codes whole arrays, and the stage before it "
                    "leaves it none: put it first"
                )

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator) -> None:
        """Write a finite float32 tensor."""
        if not value.numel():
            return
        if not self.stages:
            out.array(value.contiguous().numpy())
            return
        rest = Chain(self.stages[1:])
        self.stages[0].encode(value, out, draw, lambda left: rest.encode(left, out, draw))

    def decode(self, shape: Shape, source: Reader) -> Tensor:
        """Read a float32 tensor of ``shape``. ValueError if that is not what is there."""
        count = math.prod(shape)
        if not count:
            return torch.zeros(shape)
        if not self.stages:
            return torch.from_numpy(source.array(np.float32, count)).reshape(shape)
        rest = Chain(self.stages[1:])
        return self.stages[0].decode(shape, source, lambda inner: rest.decode(inner, source))
