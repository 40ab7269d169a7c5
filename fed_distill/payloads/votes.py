"""One vote per proxy example: the class that a merchant's student predicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from fed_distill.payloads.base import Context, Payload, Records, Room, is_integers, smallest_integers


@dataclass(frozen=True)
class Votes(Payload):
    """Predicted classes.

    :param classes: class indices, int64 ``[proxy]``
    """

    classes: Tensor
    name: ClassVar[str] = "votes"
    records: ClassVar[tuple[str, ...]] = ("votes",)
    disclosure: ClassVar[str] = "its student's votes on the proxy set"
    covered: ClassVar[str | None] = "computed by a student trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """Return class indices in the smallest integer type that holds all of them."""
        return {"votes": {"votes": smallest_integers(self.classes)}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        votes = records["votes"]["votes"]
        if not is_integers(votes):
            raise TypeError(f"votes are {votes.dtype}, not class indices")
        return cls(votes.long())

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for a 64-bit integer for each proxy example."""
        return {"votes": {"votes": 8 * context.proxy}}

    def check_shape(self, context: Context) -> None:
        """Check for a vote for each proxy example."""
        if tuple(self.classes.shape) != (context.proxy,):
            raise ValueError(f"votes have shape {list(self.classes.shape)}, not {[context.proxy]}")
        if self.classes.dtype != torch.int64:
            raise ValueError(f"votes are {self.classes.dtype}, not {torch.int64}")

    def validate(self, context: Context) -> None:
        """Check for a valid class for each proxy example."""
        self.check_shape(context)
        if bool(((self.classes < 0) | (self.classes >= context.classes)).any()):
            raise ValueError(f"votes must be classes from 0 to {context.classes - 1}")

    def scaled(self, factor: float, context: Context) -> Self:
        """Return reversed votes for a negative factor: class y becomes classes - 1 - y."""
        return self if factor > 0.0 else type(self)(context.classes - 1 - self.classes)
