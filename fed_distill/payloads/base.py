"""What a payload is: one kind of thing that travels between server and merchants.

A payload knows how it becomes arrays, what it must look like to be believed, how an attacker would scale it, and what
it reveals of a merchant. A method declares the kinds that it ``sends`` and ``receives``; transport, checks, privacy and
reports rest on that declaration and name no kind. A new kind is one subclass of `Payload` in one file.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from fed_distill.models.weights import Weights

Records = Mapping[str, Mapping[str, Tensor]]
"""Tensors by record and by name in it. A record becomes one npy dictionary on the wire."""
Room = Mapping[str, Mapping[str, int]]
"""Bytes that each array of each record may have at most; what is not in it has no place."""


@dataclass(frozen=True)
class Context:
    """What the payloads of one round must fit.

    :param weights: weights of the global student, as merchants were sent them.
    :param proxy: examples in the proxy set.
    :param classes: classes of the task.
    """

    weights: Weights
    proxy: int
    classes: int


class Payload(ABC):
    """One kind of thing that a round carries, to merchants or from them.

    ``name`` is unique among the kinds that one method sends. ``records`` are the names of all records that it may have;
    a message holds this kind exactly if the first of them is there. ``disclosure`` says in words what it reveals to who
    receives it from a merchant. ``covered`` says why nothing more is revealed where the merchant has trained with
    DP-SGD; None if the payload is computed from private examples after training, which no mechanism covers: a protected
    run with such a payload is refused. ``tells_rows`` says whether it tells which rows of embedding tables a
    merchant's examples use.
    """

    name: ClassVar[str]
    records: ClassVar[tuple[str, ...]]
    disclosure: ClassVar[str]
    covered: ClassVar[str | None] = None
    tells_rows: ClassVar[bool] = False

    @abstractmethod
    def to_records(self) -> Records:
        """The tensors that travel, of which the first record in ``records`` is one."""

    def numbers(self) -> Mapping[str, int]:
        """Whole numbers that travel beside the records, by name."""
        return {}

    @classmethod
    @abstractmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records`` and ``numbers``. KeyError, TypeError or ValueError for what is no such payload."""

    @classmethod
    @abstractmethod
    def room(cls, context: Context) -> Room:
        """How large its arrays may be, by record and name; an array without room is not read."""

    @abstractmethod
    def check_shape(self, context: Context) -> None:
        """ValueError unless all shapes fit the round. What a server has sent must pass this."""

    @abstractmethod
    def validate(self, context: Context) -> None:
        """ValueError, saying what is wrong, unless the payload fits the round and can be merged. What a merchant has
        sent must pass this."""

    @abstractmethod
    def scaled(self, factor: float, context: Context) -> Self:
        """The same with what its merchant has learned times ``factor``, as an attacker would send it: an update times
        the factor, probabilities as logits times the factor. ValueError if there is no such payload."""

    def norm(self) -> float:
        """L2 norm of how far it moves the global student; 0 if it moves no weights."""
        return 0.0

    def structure(self) -> Hashable:
        """What must be equal among the merchants of a round for their payloads to be merged with each other."""
        return ()


@runtime_checkable
class CountsRows(Protocol):
    """A payload that says how often its merchant's examples use the rows of tables, by which it counts in a mean."""

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """By table and row."""

    def with_counts(self, counts: Mapping[str, Tensor]) -> "Payload":
        """The same with other counts."""


def rows_are_probabilities(values: Tensor, present: Tensor | None = None) -> bool:
    """Whether each row sums to 1, or to 0 where it is not ``present``."""
    sums = values.sum(dim=-1)
    return torch.allclose(sums, torch.ones_like(sums) if present is None else present.to(sums.dtype), atol=1e-3)


def powered(probabilities: Tensor, exponent: float) -> Tensor:
    """Rows ``[rows, classes]`` with every probability to the power of ``exponent``, summing to 1: logits times it."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return (exponent * probabilities.clamp_min(tiny).log()).softmax(dim=-1)
