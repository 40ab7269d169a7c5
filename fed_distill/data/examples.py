"""The tables that every dataset, task and trainer share: labelled texts, their merchants, their ranking view.

A table is a frozen set of aligned columns; selecting rows makes a new one. Nothing in here knows where
the rows came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fed_distill.errors import DataError

UNLABELED = -1


@dataclass(frozen=True)
class Task:
    """What is predicted: ``classes`` in the order of the logits.

    ``gains`` (one for each class) make a ranking score, the expected gain of an example; a task with
    gains is headlined by nDCG@10, any other by macro-F1. ``positive`` is the class whose AUC is reported.
    """

    name: str
    classes: tuple[str, ...]
    pair: bool
    positive: str
    gains: tuple[float, ...] | None = None

    @property
    def headline(self) -> str:
        """Name of the metric that comparisons are made on."""
        return "macro_f1" if self.gains is None else "ndcg@10"

    @property
    def positive_index(self) -> int:
        """Index of ``positive`` among ``classes``."""
        return self.classes.index(self.positive)


@dataclass(frozen=True)
class Examples:
    """Aligned columns of ``n`` examples.

    texts: first text of each example (query, title, history). pairs: second text, or None where the task
    has one text. labels: int64 ``[n]``, class index or ``UNLABELED``. groups: int64 ``[n]``, what must not
    be split between training and test (product cluster, query). merchants: ``[n]`` merchant names.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    merchants: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.texts), len(self.labels), len(self.groups), len(self.merchants)}
        if self.pairs is not None:
            lengths.add(len(self.pairs))
        if len(lengths) != 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | npt.NDArray[Any]) -> "Examples":
        """Select rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return Examples(
            texts=tuple(self.texts[i] for i in index),
            pairs=None if self.pairs is None else tuple(self.pairs[i] for i in index),
            labels=self.labels[index],
            groups=self.groups[index],
            merchants=tuple(self.merchants[i] for i in index),
        )

    def unlabeled(self) -> "Examples":
        """The same examples without their labels."""
        return replace(self, labels=np.full(len(self), UNLABELED, dtype=np.int64))

    @staticmethod
    def concatenate(parts: Sequence["Examples"]) -> "Examples":
        """Stack tables of the same form, in order."""
        paired = all(part.pairs is not None for part in parts)
        return Examples(
            texts=tuple(text for part in parts for text in part.texts),
            pairs=tuple(text for part in parts for text in part.pairs or ()) if paired else None,
            labels=np.concatenate([part.labels for part in parts]),
            groups=np.concatenate([part.groups for part in parts]),
            merchants=tuple(name for part in parts for name in part.merchants),
        )


def members(examples: Examples, by: Literal["group", "text", "pair"]) -> npt.NDArray[np.int64]:
    """Which group each example belongs to, int64 ``[n]``, numbers 0..groups-1 that are all in use.

    by: examples belong together that have the same ``groups`` number, first text or second text. Raise DataError for
    second texts where the task has none.
    """
    if by == "group":
        return np.unique(examples.groups, return_inverse=True)[1].astype(np.int64)
    texts = examples.texts if by == "text" else examples.pairs
    if texts is None:
        raise DataError('privacy.group = "pair" needs a task with two texts: set it to "group" or "text"')
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


@dataclass(frozen=True)
class Ranking:
    """Queries with graded candidates: ``examples`` are (query, candidate) pairs, ``queries`` int64 ``[n]`` says
    which query each belongs to."""

    examples: Examples
    queries: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MerchantData:
    """One merchant's private tables. ``test`` may be empty; ``train`` never is."""

    name: str
    train: Examples
    valid: Examples
    test: Examples


@dataclass(frozen=True)
class FederatedData:
    """Everything that one experiment sees, split between the server and the merchants.

    public, public_valid: the server's labelled examples. proxy: shared unlabeled examples, held by all.
    merchants: the clients' private tables by name (in a simulation all, at a site its own). test, valid:
    pooled test and validation examples of the merchants' unseen groups, which the simulation measures on.
    ranking_test, ranking_valid: the ranking view, where the task has one.
    account: JSON-ready account of cleaning and splitting.
    """

    task: Task
    public: Examples
    public_valid: Examples
    proxy: Examples
    merchants: Mapping[str, MerchantData]
    valid: Examples
    test: Examples
    ranking_valid: Ranking | None = None
    ranking_test: Ranking | None = None
    account: Mapping[str, Any] = field(default_factory=dict)
