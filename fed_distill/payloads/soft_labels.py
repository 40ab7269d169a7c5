"""Class probabilities on the proxy set: the consensus on its way to merchants, a student's on its way back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from fed_distill.models.weights import is_finite
from fed_distill.payloads.base import Context, Payload, Records, Room, powered, rows_are_probabilities


@dataclass(frozen=True)
class SoftLabels(Payload):
    """Probabilities of every proxy example.

    :param probabilities: ``[proxy, classes]``, each row sums to 1.
    """

    probabilities: Tensor
    name: ClassVar[str] = "soft_labels"
    records: ClassVar[tuple[str, ...]] = ("soft_labels",)
    disclosure: ClassVar[str] = "its student's soft labels on the proxy set"
    covered: ClassVar[str | None] = "computed by a student trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """One array."""
        return {"soft_labels": {"soft_labels": self.probabilities}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["soft_labels"]["soft_labels"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """A probability in double precision for each class of each example."""
        return {"soft_labels": {"soft_labels": 8 * context.proxy * context.classes}}

    def check_shape(self, context: Context) -> None:
        """A row for each proxy example."""
        check_rows(self.probabilities, context.proxy, context.classes)

    def validate(self, context: Context) -> None:
        """A row of probabilities for each proxy example."""
        self.check_shape(context)
        check_probabilities(self.probabilities)

    def scaled(self, factor: float, context: Context) -> Self:
        """softmax(factor * log p)."""
        return type(self)(powered(self.probabilities, factor))


def check_rows(probabilities: Tensor, rows: int, classes: int) -> None:
    """ValueError unless there are as many rows and classes."""
    if tuple(probabilities.shape) != (rows, classes):
        raise ValueError(f"soft labels have shape {list(probabilities.shape)}, not {[rows, classes]}")


def check_probabilities(values: Tensor) -> None:
    """ValueError unless all rows are probabilities."""
    if not values.is_floating_point() or not is_finite(values) or bool((values < 0.0).any()):
        raise ValueError("soft labels are not finite, or negative, or no floating-point numbers")
    if not rows_are_probabilities(values):
        raise ValueError("soft labels do not sum to 1")
