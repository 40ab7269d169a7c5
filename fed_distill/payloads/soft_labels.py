"""Class probabilities on the proxy set: the consensus in the downlink, a student's predictions in the uplink."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from fed_distill.models.weights import is_finite
from fed_distill.payloads.base import Context, Payload, Records, Room, powered, rows_are_probabilities


@dataclass(frozen=True)
class SoftLabels(Payload):
    """Probabilities of every proxy example.

    :param probabilities: ``[proxy, classes]``, each row sums to 1
    """

    probabilities: Tensor
    name: ClassVar[str] = "soft_labels"
    records: ClassVar[tuple[str, ...]] = ("soft_labels",)
    disclosure: ClassVar[str] = "its student's soft labels on the proxy set"
    covered: ClassVar[str | None] = "computed by a student trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """Return one array."""
        return {"soft_labels": {"soft_labels": self.probabilities}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["soft_labels"]["soft_labels"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for probabilities in double precision."""
        return {"soft_labels": {"soft_labels": 8 * context.proxy * context.classes}}

    def check_shape(self, context: Context) -> None:
        """Check for a row for each proxy example."""
        check_rows(self.probabilities, context.proxy, context.classes)

    def validate(self, context: Context) -> None:
        """Check for a row of probabilities for each proxy example."""
        self.check_shape(context)
        check_probabilities(self.probabilities)

    def scaled(self, factor: float, context: Context) -> Self:
        """Return softmax(factor * log p)."""
        return type(self)(powered(self.probabilities, factor))


def check_rows(probabilities: Tensor, rows: int, classes: int) -> None:
    """Raise ValueError unless the shape is ``[rows, classes]``."""
    if tuple(probabilities.shape) != (rows, classes):
        raise ValueError(f"soft labels have shape {list(probabilities.shape)}, not {[rows, classes]}")


def check_probabilities(values: Tensor) -> None:
    """Raise ValueError unless all rows are probabilities."""
    if not values.is_floating_point() or not is_finite(values) or bool((values < 0.0).any()):
        raise ValueError("soft labels must be finite, non-negative floating-point numbers")
    if not rows_are_probabilities(values):
        raise ValueError("soft labels do not sum to 1")
