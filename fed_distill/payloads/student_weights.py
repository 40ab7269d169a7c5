"""Weights of a student: the global one on its way to merchants, a trained one on its way back."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from fed_distill.models.weights import PartialWeights, Weights, applied, is_finite, norm_of, times, update_of
from fed_distill.payloads.base import Context, Payload, Records, Room


@dataclass(frozen=True)
class StudentWeights(PartialWeights, Payload):
    """Weights of a student, whole or, of some tables, only the rows that a merchant's examples touch."""

    name: ClassVar[str] = "weights"
    records: ClassVar[tuple[str, ...]] = ("weights", "rows", "counts")
    disclosure: ClassVar[str] = "weights of its trained student"
    covered: ClassVar[str | None] = "DP-SGD: the gradients of every private step are clipped, summed and noised"
    tells_rows: ClassVar[bool] = True

    @classmethod
    def of(cls, weights: PartialWeights) -> Self:
        """The same weights as a payload."""
        return cls(weights.arrays, weights.rows, weights.counts)

    def to_records(self) -> Records:
        """Values, and of tables sent in part row numbers and counts as int32."""
        return partial_records(self)

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls.of(partial_of(records))

    @classmethod
    def room(cls, context: Context) -> Room:
        """As large as the global student."""
        return partial_room(context.weights)

    def check_shape(self, context: Context) -> None:
        """All weights are of the global student, and have its shapes and types."""
        check_shapes(self, context.weights)

    def validate(self, context: Context) -> None:
        """Shapes as above, rows sorted, distinct and in range, all values finite; frozen weights are not sent."""
        check_weights(self, context.weights)

    def scaled(self, factor: float, context: Context) -> Self:
        """start + factor * (trained - start)."""
        update = update_of(self, context.weights)
        return self.of(applied(replace(update, arrays=times(update.arrays, factor)), context.weights))

    def norm(self, context: Context) -> float:
        """Of the update; rows that are not sent have not moved."""
        moved = (value - _start(context.weights[name], self.rows.get(name)) for name, value in self.arrays.items())
        return norm_of(moved)

    def structure(self) -> Hashable:
        """Which weights there are, and which of them in part."""
        return frozenset(self.arrays), frozenset(self.rows)

    def with_counts(self, counts: Mapping[str, Tensor]) -> "StudentWeights":
        """The same with other counts of its rows."""
        return replace(self, counts=counts)


def partial_records(sent: PartialWeights, prefix: str = "") -> dict[str, Weights]:
    """Weights as records whose names begin with ``prefix``."""
    records: dict[str, Weights] = {f"{prefix}weights": sent.arrays}
    if sent.rows:
        records[f"{prefix}rows"] = {name: value.to(torch.int32) for name, value in sent.rows.items()}
        records[f"{prefix}counts"] = {name: value.to(torch.int32) for name, value in sent.counts.items()}
    return records


def partial_of(records: Records, prefix: str = "") -> PartialWeights:
    """Inverse of ``partial_records``."""
    rows, counts = (
        {name: _whole(value) for name, value in records.get(f"{prefix}{part}", {}).items()}
        for part in ("rows", "counts")
    )
    return PartialWeights(records[f"{prefix}weights"], rows, counts)


def partial_room(weights: Weights, prefix: str = "") -> Room:
    """Room for ``weights``, whole or in part."""
    rows = {name: 4 * len(value) for name, value in weights.items() if value.dim()}
    return {
        f"{prefix}weights": {name: value.nbytes for name, value in weights.items()},
        f"{prefix}rows": rows,
        f"{prefix}counts": rows,
    }


def check_shapes(sent: PartialWeights, current: Weights) -> None:
    """ValueError unless ``sent`` are some of ``current``, with their shapes and types; of a table in part, as many rows
    as it names."""
    unknown = set(sent.arrays) - set(current)
    if unknown or not sent.arrays:
        raise ValueError(f"weight {sorted(unknown)[0]!r} is unknown" if unknown else "it sent no weight")
    for name, value in sent.arrays.items():
        expected = list(current[name].shape)
        rows = sent.rows.get(name)
        if rows is not None:
            if rows.dim() != 1 or not expected or len(rows) > expected[0]:
                raise ValueError(f"{name} has rows of the wrong shape {list(rows.shape)}")
            expected = [len(rows), *expected[1:]]
        if list(value.shape) != expected:
            raise ValueError(f"{name} has shape {list(value.shape)}, not {expected}")
        if value.dtype != current[name].dtype:
            raise ValueError(f"{name} is {value.dtype}, not {current[name].dtype}")


def check_weights(sent: PartialWeights, current: Weights) -> None:
    """ValueError unless ``sent`` fits ``current``, rows are sorted, distinct and in range, counts are there for
    them alone and not negative, and all values are finite."""
    check_shapes(sent, current)
    for name, value in sent.arrays.items():
        rows = sent.rows.get(name)
        if rows is not None:
            most = len(current[name])
            if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= most or bool((rows.diff() <= 0).any())):
                raise ValueError(f"row numbers of {name} are out of range or not sorted")
            counts = sent.counts.get(name)
            if counts is None or counts.shape != rows.shape or bool((counts < 0).any()):
                raise ValueError(f"counts of {name} are missing, negative or of another shape")
        if not is_finite(value):
            raise ValueError(f"{name} has values that are not finite")
    unknown = (set(sent.rows) | set(sent.counts)) - set(sent.arrays)
    if unknown:
        raise ValueError(f"rows of {sorted(unknown)[0]!r} without its values")
    whole = set(sent.counts) - set(sent.rows)
    if whole:
        raise ValueError(f"counts of {sorted(whole)[0]!r} without its rows")


def _start(value: Tensor, rows: Tensor | None) -> Tensor:
    return value if rows is None else value[rows]


def _whole(numbers: Tensor) -> Tensor:
    if numbers.dtype != torch.int32:
        raise TypeError(f"row numbers or their counts are {numbers.dtype}")
    return numbers.long()
