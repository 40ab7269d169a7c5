"""Weights of the global student on their way to merchants, who answer with an update of them (``StudentUpdate``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Self

from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.base import Context, Payload, Records, Room
from fed_distill.payloads.partial import check_shapes

_DOWN_ONLY = "whole weights, which only a server sends: a merchant sends a StudentUpdate"


@dataclass(frozen=True)
class StudentWeights(Payload):
    """All weights of a student.

    :param arrays: by parameter name.
    """

    arrays: Weights
    name: ClassVar[str] = "weights"
    records: ClassVar[tuple[str, ...]] = ("weights",)
    disclosure: ClassVar[str] = "weights of its trained student"

    def to_records(self) -> Records:
        """One record of arrays."""
        return {"weights": self.arrays}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["weights"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """As large as the global student."""
        return {"weights": {name: value.nbytes for name, value in context.weights.items()}}

    def check_shape(self, context: Context) -> None:
        """All weights are of the global student, and have its shapes and types."""
        check_shapes(PartialWeights(self.arrays), context.weights)

    def validate(self, context: Context) -> NoReturn:
        """No merchant may send it."""
        raise ValueError(_DOWN_ONLY)

    def scaled(self, factor: float, context: Context) -> NoReturn:
        """No merchant sends it."""
        raise ValueError(_DOWN_ONLY)
