"""How far a merchant's training moved the student that it was sent: what federated averaging takes the mean of."""

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
    """Trained weights less those of the downlink, in float32: whole or, of some tables, only the rows that a merchant's
    examples touch. What is not sent, because students freeze it or do not touch it, has not moved."""

    name: ClassVar[str] = "update"
    records: ClassVar[tuple[str, ...]] = ("update", "rows", "counts")
    disclosure: ClassVar[str] = "update of its student's weights"
    covered: ClassVar[str | None] = "DP-SGD: the gradients of every private step are clipped, summed and noised"
    tells_rows: ClassVar[bool] = True

    @classmethod
    def of(cls, update: PartialWeights) -> Self:
        """The same update as a payload."""
        return cls(update.arrays, update.rows, update.counts)

    def to_records(self) -> Records:
        """Values, and of tables sent in part row numbers and counts as int32."""
        return partial_records(self, self.records)

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls.of(partial_of(records, cls.records))

    @classmethod
    def room(cls, context: Context) -> Room:
        """As large as the global student in single precision."""
        return partial_room(like_updates(context.weights), cls.records)

    def check_shape(self, context: Context) -> None:
        """All are updates of weights of the global student, and have their shapes."""
        check_shapes(self, like_updates(context.weights))

    def validate(self, context: Context) -> None:
        """Shapes as above, rows sorted, distinct and in range, all values finite."""
        check_weights(self, like_updates(context.weights))

    def scaled(self, factor: float, context: Context) -> Self:
        """Times ``factor``."""
        return replace(self, arrays=times(self.arrays, factor))

    def norm(self) -> float:
        """Of all of it."""
        return norm_of(self.arrays.values())

    def structure(self) -> Hashable:
        """Which weights there are, and which of them in part."""
        return frozenset(self.arrays), frozenset(self.rows)

    def with_counts(self, counts: Mapping[str, Tensor]) -> "StudentUpdate":
        """The same with other counts of its rows."""
        return replace(self, counts=counts)
