"""Serialization and validation of payloads of weights and updates, which may have partial tables
(``PartialWeights``)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fed_distill.models.weights import PartialWeights, Weights, is_finite
from fed_distill.payloads.base import Records, Room


def like_updates(weights: Weights) -> Weights:
    """Return tensors with the names, shapes and types of an update of all ``weights``: float32, and only for
    floating-point weights."""
    return {name: value.float() for name, value in weights.items() if value.is_floating_point()}


def partial_records(sent: PartialWeights, names: Sequence[str]) -> dict[str, Weights]:
    """Return records with the three ``names``: arrays, and row numbers and counts of partial tables as int32."""
    arrays, *parts = names
    records: dict[str, Weights] = {arrays: sent.arrays}
    for name, numbers in zip(parts, (sent.rows, sent.counts), strict=True):
        if sent.rows:
            records[name] = {table: value.to(torch.int32) for table, value in numbers.items()}
    return records


def partial_of(records: Records, names: Sequence[str]) -> PartialWeights:
    """Inverse of ``partial_records``."""
    arrays, *parts = names
    rows, counts = ({table: _whole(value) for table, value in records.get(name, {}).items()} for name in parts)
    return PartialWeights(records[arrays], rows, counts)


def partial_room(weights: Weights, names: Sequence[str]) -> Room:
    """Return room for ``weights``, whole or partial."""
    arrays, rows, counts = names
    numbers = {name: 4 * len(value) for name, value in weights.items() if value.dim()}
    return {arrays: {name: value.nbytes for name, value in weights.items()}, rows: numbers, counts: numbers}


def check_shapes(sent: PartialWeights, current: Weights) -> None:
    """Raise ValueError unless ``sent`` is a subset of ``current`` with equal shapes and types; a partial table must
    have as many rows as row numbers."""
    unknown = set(sent.arrays) - set(current)
    if unknown or not sent.arrays:
        raise ValueError(f"weight {sorted(unknown)[0]!r} is unknown" if unknown else "it has no weights")
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
    """Raise ValueError unless ``sent`` fits ``current``, row numbers are sorted, distinct and in range, exactly these
    rows have counts, which are not negative, and all values are finite."""
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
        raise ValueError(f"row numbers of {sorted(unknown)[0]!r} have no values")
    whole = set(sent.counts) - set(sent.rows)
    if whole:
        raise ValueError(f"counts of {sorted(whole)[0]!r} have no row numbers")


def _whole(numbers: Tensor) -> Tensor:
    if numbers.dtype != torch.int32:
        raise TypeError(f"row numbers or their counts are {numbers.dtype}")
    return numbers.long()
