"""A merchant's update of the student in the downlink, as in federated averaging."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from fed_distill.models.weights import PartialWeights, norm_of, times
from fed_distill.payloads.base import Context, Payload, Records, Room
from fed_distill.payloads.partial import (
    check_shapes,
    check_weights,
    like_updates,
    partial_of,
    partial_records,
    partial_room,
)


@dataclass(frozen=True)
class StudentUpdate(PartialWeights, Payload):
    """Difference of the trained weights and those of the downlink, in float32; of some tables, only the rows that a
    merchant's examples use. Weights and rows that are not sent, as they are frozen or unused, are unchanged."""

    name: ClassVar[str] = "update"
    records: ClassVar[tuple[str, ...]] = ("update", "rows", "counts")
    disclosure: ClassVar[str] = "update of its student's weights"
    covered: ClassVar[str | None] = "DP-SGD: the gradients of every private step are clipped, summed and noised"
    tells_rows: ClassVar[bool] = True

    @classmethod
    def of(cls, update: PartialWeights) -> Self:
        """Convert an update to a payload."""
        return cls(update.arrays, update.rows, update.counts)

    def to_records(self) -> Records:
        """Return values, and row numbers and counts of partial tables as int32."""
        return partial_records(self, self.records)

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls.of(partial_of(records, cls.records))

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the global student in single precision."""
        return partial_room(like_updates(context.weights), cls.records)

    def check_shape(self, context: Context) -> None:
        """Check for names and shapes of weights of the global student."""
        check_shapes(self, like_updates(context.weights))

    def validate(self, context: Context) -> None:
        """Check shapes, that row numbers are sorted, distinct and in range, and that all values are finite."""
        check_weights(self, like_updates(context.weights))

    def scaled(self, factor: float, context: Context) -> Self:
        """Return it multiplied by ``factor``."""
        return replace(self, arrays=times(self.arrays, factor))

    def norm(self) -> float:
        """Return the norm over all arrays."""
        return norm_of(self.arrays.values())

    def structure(self) -> Hashable:
        """Return the names of the weights, and of the partial ones."""
        return frozenset(self.arrays), frozenset(self.rows)

    def with_counts(self, counts: Mapping[str, Tensor]) -> "StudentUpdate":
        """Return a copy with other use counts of its rows."""
        return replace(self, counts=counts)
