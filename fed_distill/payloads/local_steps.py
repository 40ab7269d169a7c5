"""Number of steps that a merchant trained in a round, for methods that divide its update by them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from fed_distill.payloads.base import Context, Payload, Records, Room

MOST_STEPS = 2**31
"""Maximum number of steps of a merchant in a round."""


@dataclass(frozen=True)
class LocalSteps(Payload):
    """Number of steps.

    :param count: the number, int64 ``[1]``
    """

    count: Tensor
    name: ClassVar[str] = "local_steps"
    records: ClassVar[tuple[str, ...]] = ("local_steps",)
    disclosure: ClassVar[str] = "number of its training steps"
    covered: ClassVar[str | None] = "follows from the plan and the number of training examples, which is sent too"

    @classmethod
    def of(cls, steps: int) -> Self:
        """Convert a number of steps to a payload."""
        return cls(torch.tensor([steps]))

    @property
    def steps(self) -> int:
        """The number."""
        return int(self.count)

    def to_records(self) -> Records:
        """Return one record of one number."""
        return {"local_steps": {"steps": self.count}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["local_steps"]["steps"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for one 64-bit integer."""
        return {"local_steps": {"steps": 8}}

    def check_shape(self, context: Context) -> None:
        """Check for one integer."""
        if self.count.shape != (1,) or self.count.dtype != torch.int64:
            raise ValueError(f"the number of steps is {self.count.dtype} {list(self.count.shape)}, not torch.int64 [1]")

    def validate(self, context: Context) -> None:
        """Check for a plausible number."""
        self.check_shape(context)
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"the number of steps must be from 1 to {MOST_STEPS}, not {self.steps}")

    def scaled(self, factor: float, context: Context) -> Self:
        """Return it unchanged: the update that it divides is scaled."""
        return self
