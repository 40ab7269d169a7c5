"""Tables shared by all datasets, tasks and trainers: labelled texts, their merchants, their ranking view.

A table is an immutable set of aligned columns; selecting rows returns a new table.
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
    """A prediction task with ``classes`` in the order of the logits.

    gains: relevance gain of each class; candidates are ranked by expected gain. A task with gains is measured by
    nDCG@10, one of campaigns by the Qini coefficient, any other by macro-F1. positive: the class for AUC.
    """

    name: str
    classes: tuple[str, ...]
    pair: bool
    positive: str
    gains: tuple[float, ...] | None = None

    @property
    def headline(self) -> str:
        """Name of the metric used in comparisons."""
        if self.of_campaigns:
            return "qini"
        return "macro_f1" if self.gains is None else "ndcg@10"

    @property
    def fields(self) -> int:
        """Number of texts of an example."""
        return 2 if self.pair else 1

    @property
    def of_campaigns(self) -> bool:
        """Whether the classes are the cells of a campaign (``campaign_cells``), by which an uplift is predicted."""
        return self.name == "marketing-effect"

    @property
    def of_histories(self) -> bool:
        """Whether first texts are histories: titles joined by ``HISTORY_SEPARATOR``, which are private."""
        return self.name in ("recommend", "next-basket", "marketing-effect")

    @property
    def of_titles(self) -> bool:
        """Whether first texts are titles joined by ``HISTORY_SEPARATOR``: histories, and profiles of customers."""
        return self.of_histories or self.name == "profile"

    @property
    def positive_index(self) -> int:
        """Index of ``positive`` among ``classes``."""
        return self.classes.index(self.positive)


@dataclass(frozen=True)
class Examples:
    """Aligned columns of ``n`` examples.

    texts: first text of each example (query, title, history). pairs: second text, or None for tasks with one text.
    labels: int64 ``[n]``, class index or ``UNLABELED``. groups: int64 ``[n]``; a group (product cluster, query) is not
    split between training and test. merchants: names ``[n]``.
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
        """Return the examples without labels."""
        return replace(self, labels=np.full(len(self), UNLABELED, dtype=np.int64))

    @staticmethod
    def concatenate(parts: Sequence["Examples"]) -> "Examples":
        """Concatenate tables with the same columns, in order."""
        paired = all(part.pairs is not None for part in parts)
        return Examples(
            texts=tuple(text for part in parts for text in part.texts),
            pairs=tuple(text for part in parts for text in part.pairs or ()) if paired else None,
            labels=np.concatenate([part.labels for part in parts]),
            groups=np.concatenate([part.groups for part in parts]),
            merchants=tuple(name for part in parts for name in part.merchants),
        )


def members(examples: Examples, by: Literal["group", "text", "pair"]) -> npt.NDArray[np.int64]:
    """Return the group of each example, int64 ``[n]``, numbered from 0 without gaps.

    :param examples: ``n`` examples
    :param by: what the members of a group share: the number in ``groups``, the first text or the second text
    :raises DataError: ``by`` is ``pair`` and the task has one text
    """
    if by == "group":
        return np.unique(examples.groups, return_inverse=True)[1].astype(np.int64)
    texts = examples.texts if by == "text" else examples.pairs
    if texts is None:
        raise DataError('privacy.group = "pair" needs a task with two texts: set it to "group" or "text"')
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)


VALIDATION_QUERIES = 400
"""Maximum number of queries in the ranking view of a validation set, which is scored after every round."""


def most_queries(part: str, wanted: int) -> int:
    """Return the maximum number of queries in the ranking view of ``part`` if ``wanted`` are to be tested on."""
    return min(wanted, VALIDATION_QUERIES) if part == "valid" else wanted


@dataclass(frozen=True)
class Ranking:
    """Queries with graded candidates.

    examples: (query, candidate) pairs. queries: int64 ``[n]``, the query of each pair.
    """

    examples: Examples
    queries: npt.NDArray[np.int64]


_NOTHING = Examples((), None, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), ())


@dataclass(frozen=True)
class MerchantData:
    """One merchant's private tables. ``test`` may be empty, ``train`` may not.

    unlabeled: training examples without labels (``data.client_labels``), by default none.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    unlabeled: Examples = _NOTHING

    def __post_init__(self) -> None:
        if not len(self.unlabeled):
            object.__setattr__(self, "unlabeled", self.train.take([]))


@dataclass(frozen=True)
class ColdMerchants:
    """Merchants that are held out whole, to measure merchants that join after the training.

    names: these merchants. test: their test examples. ranking: ranking view of their test products, with candidates of
    theirs only; None if there is none.
    """

    names: tuple[str, ...]
    test: Examples
    ranking: Ranking | None


@dataclass(frozen=True)
class FederatedData:
    """The data of one experiment, split between the server and the merchants.

    public, public_valid: labelled examples of the server. proxy: unlabeled examples that all participants have.
    merchants: private tables of the clients by name (all in a simulation, the site's own at a site). valid, test:
    pooled validation and test examples of all merchants, for evaluation in a simulation. ranking_valid, ranking_test:
    the ranking view, if the task has one. account: JSON-serializable account of cleaning and splitting. cold: merchants
    held out whole (``data.cold_merchants``), or None. proxy_truth: true class of each proxy example, int64 ``[proxy]``,
    `UNLABELED` where unknown; None where the data do not say. It is for the control ``oracle-proxy`` of simulations
    only: it is neither sent nor part of a fingerprint. true_effects: true effect of the campaign on each customer of
    the test set, by group, of generated data; None elsewhere. It is for the account of a finished run only.
    independent_users: whether the dataset declares its groups to be users, see ``dataset.HasUsers``.
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
    cold: ColdMerchants | None = None
    proxy_truth: npt.NDArray[np.int64] | None = None
    true_effects: Mapping[int, float] | None = None
    independent_users: bool = False

    def __post_init__(self) -> None:
        if self.proxy_truth is not None and self.proxy_truth.shape != (len(self.proxy),):
            raise ValueError(f"proxy_truth has shape {self.proxy_truth.shape} for {len(self.proxy)} proxy examples")
