"""What a dataset has to offer, and the names of the built-in ones.

A dataset reads and cleans rows and hands over a `Source`; splitting, the public share, the proxy set and the
account are the same for all (``splits.py``). An own dataset is a dataclass (its fields are its options) with a
``read`` method, named in an experiment by import path, ``dataset = "my_package.my_data:Reviews"``::

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

`LabeledRows` suits rows that are examples already; `Catalogue` makes graded pairs of offers; anything else
implements `Source` itself.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fed_distill.config import DataConfig
from fed_distill.data.examples import Examples, Ranking, Task
from fed_distill.registry import Registry

IntArray = npt.NDArray[np.int64]

DATASETS = Registry(
    "dataset",
    {
        "esci": "fed_distill.data.esci:Esci",
        "marketplace": "fed_distill.data.marketplace:Marketplace",
        "pricerunner": "fed_distill.data.pricerunner:PriceRunner",
        "reviews-zh": "fed_distill.data.reviews:ChineseReviews",
        "table": "fed_distill.data.table:Table",
        "wands": "fed_distill.data.wands:Wands",
    },
)


class Source(Protocol):
    """Clean rows of all merchants, and how rows become examples.

    Rows are numbered ``0 .. n-1``. A row is whatever is split between training and test as a whole: an example,
    or an offer from which examples are made after the split.
    """

    @property
    def task(self) -> Task:
        """What is predicted."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the merchants, each once, in the order in which they are listed and split."""
        ...

    @property
    def owners(self) -> IntArray:
        """``[n]``: index into ``names`` of each row's merchant."""
        ...

    @property
    def groups(self) -> IntArray:
        """``[n]``: rows of equal group are never split between training, validation and test."""
        ...

    @property
    def domains(self) -> tuple[str, ...] | None:
        """``[n]``: the domain of each row, such as its product category; None for data without domains."""
        ...

    @property
    def account(self) -> Mapping[str, Any]:
        """JSON-ready account of cleaning."""
        ...

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Labelled examples of one merchant, made of nothing but its own ``rows`` of one part of the split.

        ``part`` is ``train``, ``valid`` or ``test``; with ``merchant`` and ``seed`` it names the random stream.
        """
        ...

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """``size`` distinct unlabeled examples made of the public merchants' ``rows``; all, if there are fewer."""
        ...

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Queries with graded candidates among all merchants' ``rows`` of one part; None without such a view."""
        ...


class Dataset(Protocol):
    """A named place that rows come from; its dataclass fields are its options."""

    def read(self, config: DataConfig) -> Source:
        """Read and clean the rows for ``config.task``; raise ConfigError if that task is not offered."""
        ...
