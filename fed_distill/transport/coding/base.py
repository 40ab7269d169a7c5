"""A chain of compression stages: each encodes a part of its input, and passes the remaining numbers to the next.

For example, a top-k stage writes the positions of the kept entries and passes their values on; a following int8 stage
writes these in 8 bits. Numbers that remain after the last stage are written as float32. Both ends build the same chain
from the same experiment and have the shapes, so that a message contains neither its coding nor its shapes.
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
"""Encodes a float32 tensor with the following stages."""
Decode = Callable[[Shape], Tensor]
"""Decodes a float32 tensor of a given shape, encoded with the following stages."""


class Stage(Protocol):
    """One stage of a chain: a frozen dataclass whose fields are its options.

    ``last``: it passes no numbers to a later stage. ``first``: it encodes whole arrays, which an earlier stage does not
    pass on. Inputs are non-empty, finite float32 tensors: from the caller with at least two dimensions, from another
    stage with any number. ``decode`` raises ValueError for bytes that ``encode`` cannot have written.
    """

    last: ClassVar[bool]
    first: ClassVar[bool]

    def encode(self, value: Tensor, out: Writer, draw: torch.Generator, rest: Encode) -> None:
        """Write ``value``; numbers for later stages are passed to ``rest``. ``draw``: for stochastic rounding."""

    def decode(self, shape: Shape, source: Reader, rest: Decode) -> Tensor:
        """Read a tensor of ``shape``."""


@dataclass(frozen=True)
class Chain:
    """Stages in the order of encoding; raise ConfigError if a stage has no input in this order."""

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages[:-1], 1):
            if stage.last:
                raise ConfigError(
                    f"transport: stage {number} ({type(stage).__name__}) passes no numbers to the next stage: put it "
                    "last"
                )
        for number, stage in enumerate(self.stages[1:], 2):
            if stage.first:
                raise ConfigError(
                    f"transport: stage {number} ({type(stage).__name__}) encodes whole arrays, which the stage before "
                    "it does not pass on: put it first"
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
        """Read a float32 tensor of ``shape``; raise ValueError for invalid bytes."""
        count = math.prod(shape)
        if not count:
            return torch.zeros(shape)
        if not self.stages:
            return torch.from_numpy(source.array(np.float32, count)).reshape(shape)
        rest = Chain(self.stages[1:])
        return self.stages[0].decode(shape, source, lambda inner: rest.decode(inner, source))
