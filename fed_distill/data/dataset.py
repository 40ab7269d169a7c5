"""The interface of datasets, and the names of the built-in ones.

A dataset reads and cleans rows and returns a `Source`; splitting, public merchants, proxy set and account are the same
for all (``splits.py``). To add a dataset, write a dataclass (its fields are its options) with a ``read`` method, and
name it in an experiment by import path, ``dataset = "my_package.my_data:Reviews"``::

    @dataclass(frozen=True)
    class Reviews:
        path: Path

        def read(self, config: DataConfig) -> Source:
            rows = json.loads(self.path.read_text())
            return LabeledRows.build(
                category_task([row["stars"] for row in rows]),
                texts=[row["text"] for row in rows],
                labels=[row["stars"] for row in rows],
                merchants=[row["shop"] for row in rows],
                config=config,
            )

Use `LabeledRows` if rows are examples already and `Catalogue` to make graded pairs of offers; otherwise implement
`Source`, and `HasPublicTexts` for ``data.proxy_from = "catalogue"``.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fed_distill.config import DataConfig
from fed_distill.data.examples import Examples, Ranking, Task
from fed_distill.registry import Registry

IntArray = npt.NDArray[np.int64]

DATASETS = Registry(
    "dataset",
    {
        "complete-journey": "fed_distill.data.shop.dataset:CompleteJourney",
        "esci": "fed_distill.data.esci:Esci",
        "marketplace": "fed_distill.data.marketplace:Marketplace",
        "pricerunner": "fed_distill.data.pricerunner:PriceRunner",
        "reviews-zh": "fed_distill.data.reviews:ChineseReviews",
        "shop": "fed_distill.data.shop.dataset:Shop",
        "table": "fed_distill.data.table:Table",
        "wands": "fed_distill.data.wands:Wands",
    },
)


class Source(Protocol):
    """Clean rows of all merchants, and how examples are made of them.

    Rows are numbered ``0 .. n-1``. A row is the unit of the split into training, validation and test: an example, or an
    offer from which examples are made after the split.
    """

    @property
    def task(self) -> Task:
        """The prediction task."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the merchants, in the order of the report and of the split."""
        ...

    @property
    def owners(self) -> IntArray:
        """Index into ``names`` of each row's merchant ``[n]``."""
        ...

    @property
    def groups(self) -> IntArray:
        """Group of each row ``[n]``; a group is never split between training, validation and test."""
        ...

    @property
    def domains(self) -> tuple[str, ...] | None:
        """Domain of each row ``[n]``, such as its product category; None for data without domains."""
        ...

    @property
    def account(self) -> Mapping[str, Any]:
        """JSON-serializable account of the cleaning."""
        ...

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Make labelled examples of one merchant from its own rows of one part of the split.

        :param rows: the merchant's rows of this part
        :param merchant: name; with ``part`` and ``seed`` it determines the random stream
        :param part: ``train``, ``valid`` or ``test``
        :param seed: ``data.seed``
        """
        ...

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """Make at most ``size`` distinct examples of the public merchants' ``rows``.

        Their labels are the true classes where these are known, otherwise `UNLABELED`. They become
        `FederatedData.proxy_truth`; the proxy set itself has no labels.
        """
        ...

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Make queries with graded candidates from all merchants' ``rows`` of one part; None without such a view."""
        ...


@runtime_checkable
class HasParts(Source, Protocol):
    """A source that divides its rows itself, such as by time, instead of at random by group."""

    @property
    def parts(self) -> IntArray:
        """Part of each row ``[n]``: 0 training, 1 validation, 2 test, -1 none."""
        ...


@runtime_checkable
class HasEffects(Source, Protocol):
    """A source of generated campaigns, whose true effects are known."""

    @property
    def effects(self) -> npt.NDArray[np.float64]:
        """True effect of the campaign on the customer of each row ``[n]``, for evaluation only. A group is a customer
        of one campaign."""
        ...


@runtime_checkable
class HasUsers(Source, Protocol):
    """A source whose groups are users."""

    @property
    def independent_users(self) -> bool:
        """Whether each user is at one merchant, and the examples of a user depend on no other user's data: adding or
        removing a user adds or removes the rows and the examples of one group at one merchant, and changes no other."""
        ...


def has_independent_users(source: Source) -> bool:
    """Whether the groups of ``source`` are users of whom none changes the examples of another."""
    return isinstance(source, HasUsers) and source.independent_users


def true_effects(source: Source, rows: IntArray) -> dict[int, float] | None:
    """Return the true effects on the customers of ``rows``, by group; None if nobody knows them."""
    if not isinstance(source, HasEffects):
        return None
    return dict(zip(source.groups[rows].tolist(), source.effects[rows].tolist(), strict=True))


@runtime_checkable
class RelatesSeeds(Protocol):
    """A dataset whose data seeds are not random splits of the same rows."""

    def test_to_train(self, config: DataConfig) -> float:
        """Return what data seeds share, see ``test_to_train``."""
        ...


def test_to_train(config: DataConfig) -> float:
    """Return what data seeds share: the number of test groups divided by that of training groups if they split the same
    rows at random; 0 if each has rows of its own; infinity if all have the same test rows, as in a split by time."""
    dataset = DATASETS.build(config.dataset, config.options)
    return dataset.test_to_train(config) if isinstance(dataset, RelatesSeeds) else of_random_splits(config)


def of_random_splits(config: DataConfig) -> float:
    """Return the number of test groups divided by that of training groups."""
    return config.test_share / (1.0 - config.valid_share - config.test_share)


class Dataset(Protocol):
    """Reads rows from one place; its dataclass fields are its options."""

    def read(self, config: DataConfig) -> Source:
        """Read and clean the rows for ``config.task``.

        :raises ConfigError: the dataset does not support the task
        """
        ...
