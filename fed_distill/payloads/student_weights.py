"""Weights of the global student in the downlink; merchants send an update of them (``StudentUpdate``)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn, Self

from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.base import Context, Payload, Records, Room
from fed_distill.payloads.partial import check_shapes

_DOWN_ONLY = "only the server sends whole weights: a merchant must send a StudentUpdate"


@dataclass(frozen=True)
class StudentWeights(Payload):
    """All weights of a student.

    :param arrays: weights by parameter name
    """

    arrays: Weights
    name: ClassVar[str] = "weights"
    records: ClassVar[tuple[str, ...]] = ("weights",)
    disclosure: ClassVar[str] = "weights of its trained student"

    def to_records(self) -> Records:
        """Return one record of arrays."""
        return {"weights": self.arrays}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["weights"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the global student."""
        return {"weights": {name: value.nbytes for name, value in context.weights.items()}}

    def check_shape(self, context: Context) -> None:
        """Check for names, shapes and types of the global student's weights."""
        check_shapes(PartialWeights(self.arrays), context.weights)

    def validate(self, context: Context) -> NoReturn:
        """Reject it, as merchants must not send it."""
        raise ValueError(_DOWN_ONLY)

    def scaled(self, factor: float, context: Context) -> NoReturn:
        """Reject it, as merchants do not send it."""
        raise ValueError(_DOWN_ONLY)
