"""Base class of payloads, the content of messages between server and merchants.

A payload defines its serialization, its validation, its scaling by an attacker, and what it discloses about a merchant.
A method declares the kinds that it ``sends`` and ``receives``; transport, checks, privacy and reports use these
declarations only. A new kind is one subclass of `Payload` in one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from fed_distill.models.weights import Weights

Records = Mapping[str, Mapping[str, Tensor]]
"""Tensors by record and name. A record is serialized as one dictionary of npy arrays."""
Room = Mapping[str, Mapping[str, int]]
"""Maximum bytes of each array by record and name; other arrays are rejected."""


@dataclass(frozen=True)
class Context:
    """Sizes that the payloads of one round must fit.

    :param weights: weights of the global student, as in the downlink
    :param proxy: number of examples in the proxy set
    :param classes: number of classes of the task
    :param fields: number of texts of an example
    """

    weights: Weights
    proxy: int
    classes: int
    fields: int = 1


class Payload(ABC):
    """One kind of content of a round's messages, to or from merchants.

    ``name`` is unique among the kinds that a method sends. ``records`` are the names of all its possible records; a
    message has this kind if and only if it has the first of them. ``disclosure`` describes what it discloses about a
    merchant. ``covered`` explains why DP-SGD at the merchant covers it; None if it is computed from private examples
    after training: private runs with such a payload are rejected. ``from_texts``: whether what is computed from private
    examples after training is how close other texts are to theirs, which a mechanism may cover by computing it from a
    noised sum (``privacy.text_sum``). ``of_labels``: whether it consists of private examples with labels that the
    mechanism itself has randomized; without such a mechanism it does not exist. ``tells_rows``: whether it discloses
    the rows of embedding tables that a merchant's examples use.
    """

    name: ClassVar[str]
    records: ClassVar[tuple[str, ...]]
    disclosure: ClassVar[str]
    covered: ClassVar[str | None] = None
    from_texts: ClassVar[bool] = False
    of_labels: ClassVar[bool] = False
    tells_rows: ClassVar[bool] = False

    @abstractmethod
    def to_records(self) -> Records:
        """Return the tensors to send, with at least the first of ``records``."""

    def numbers(self) -> Mapping[str, int]:
        """Return integers to send beside the records, by name."""
        return {}

    @classmethod
    @abstractmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records`` and ``numbers``; raise KeyError, TypeError or ValueError for invalid content."""

    @classmethod
    @abstractmethod
    def room(cls, context: Context) -> Room:
        """Return the maximum size of its arrays, by record and name; other arrays are not read."""

    @abstractmethod
    def check_shape(self, context: Context) -> None:
        """Raise ValueError unless all shapes fit the round. It is applied to payloads from the server."""

    @abstractmethod
    def validate(self, context: Context) -> None:
        """Raise ValueError unless the payload fits the round and can be merged. It is applied to payloads from
        merchants."""

    @abstractmethod
    def scaled(self, factor: float, context: Context) -> Self:
        """Return a copy scaled by ``factor``, as an attacker would send it: updates are multiplied by the factor,
        probabilities as logits. Raise ValueError if the result is not a valid payload."""

    def norm(self) -> float:
        """Return the L2 norm of its change of the global student; 0 without an update of weights."""
        return 0.0

    def structure(self) -> Hashable:
        """Return a value that must be equal for all merchants of a round, so that their payloads can be merged."""
        return ()


@runtime_checkable
class CountsRows(Protocol):
    """A payload with use counts of table rows by its merchant's examples, which are weights in a mean."""

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """Return use counts by table, ``[rows]``."""

    def with_counts(self, counts: Mapping[str, Tensor]) -> "Payload":
        """Return a copy with other counts."""


def rows_are_probabilities(values: Tensor, present: Tensor | None = None) -> bool:
    """Whether each row sums to 1, or to 0 if it is not ``present``."""
    sums = values.sum(dim=-1)
    return torch.allclose(sums, torch.ones_like(sums) if present is None else present.to(sums.dtype), atol=1e-3)


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def smallest_integers(values: Tensor) -> Tensor:
    """Return int64 ``values`` in the smallest integer type that holds all of them, for a message."""
    least, largest = (int(value) for value in values.aminmax()) if values.numel() else (0, 0)
    fitting = (kind for kind in _INTEGERS if torch.iinfo(kind).min <= least and largest <= torch.iinfo(kind).max)
    return values.to(next(fitting))


def is_integers(values: Tensor) -> bool:
    """Whether ``values`` have one of the types of ``smallest_integers``."""
    return values.dtype in _INTEGERS


def powered(probabilities: Tensor, exponent: float) -> Tensor:
    """Raise probabilities ``[rows, classes]`` to the power of ``exponent`` and normalise: logits times the exponent."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return (exponent * probabilities.clamp_min(tiny).log()).softmax(dim=-1)
