"""ESCI, Amazon's shopping queries: 2.6 million judged (query, product) pairs in English, Spanish and Japanese.

Reddy et al. 2022, *Shopping Queries Dataset* (arXiv:2206.06588, Apache-2.0; github.com/amazon-science/esci-data). The
user downloads the two Parquet files. Judgements are joined to products by locale and product id. The merchant is the
brand and the domain is the locale. The published train/test split is not used: queries are split by ``data.seed``,
as in all datasets, so that there is a validation part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.dataset import Source
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.tasks import RELEVANCE, choose_task, label_reader
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream

EXAMPLES = "shopping_queries_dataset_examples.parquet"
PRODUCTS = "shopping_queries_dataset_products.parquet"
_KEY = ["product_locale", "product_id"]
_GRADES = dict(zip("ESCI", RELEVANCE.classes, strict=True))


@dataclass(frozen=True)
class Esci:
    """Amazon's judged queries; task ``relevance``, with the brand as merchant and the locale as domain.

    path: folder of the two Parquet files. locales: locales to read. version: ``small`` excludes easy queries, as in the
    ranking task of the KDD Cup 2022; ``large`` has all. queries: size of a random sample of the queries, drawn with
    data.seed; None for all. ranking_queries: maximum number of queries in the ranking view.
    """

    path: Path
    locales: tuple[Literal["us", "es", "jp"], ...] = ("us",)
    version: Literal["small", "large"] = "small"
    queries: Annotated[int, Field(ge=1)] | None = None
    ranking_queries: Annotated[int, Field(ge=1)] = 2000

    def __post_init__(self) -> None:
        if not self.locales:
            raise ValueError("list at least one locale")

    def read(self, config: DataConfig) -> Source:
        """Read and join the two files; products without a brand have no merchant and are dropped."""
        choose_task(config.task, "esci", ("relevance",))
        flag = f"{self.version}_version"
        judged = self._table(EXAMPLES, ["query", "esci_label", flag, *_KEY], (flag, "==", 1))
        if self.queries is not None:
            judged = _some_queries(judged, self.queries, config.seed)
        products = self._table(PRODUCTS, ["product_title", "product_brand", *_KEY], None)
        rows = judged.merge(products.drop_duplicates(_KEY), how="left", on=_KEY)
        read_label = label_reader(RELEVANCE)
        return LabeledRows.build(
            RELEVANCE,
            texts=_texts(rows["query"]),
            pairs=_texts(rows["product_title"]),
            labels=[read_label(_GRADES.get(label, label)) for label in rows["esci_label"]],
            merchants=[" ".join(brand.split()) for brand in _texts(rows["product_brand"])],
            domains=_texts(rows["product_locale"]),
            config=config,
            ranking_queries=self.ranking_queries,
            public_texts=True,
        )

    def _table(self, name: str, columns: list[str], only: tuple[str, str, object] | None) -> pd.DataFrame:
        """Read columns of one file for the selected locales."""
        path = self.path / name
        wanted = [("product_locale", "in", list(self.locales)), *([] if only is None else [only])]
        try:
            table = pd.read_parquet(path, columns=columns, filters=wanted)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} does not exist: data.options.path is the folder of {EXAMPLES} and {PRODUCTS}, "
                "from github.com/amazon-science/esci-data (fetched with Git LFS)"
            ) from error
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        if table.empty:
            raise DataError(f"{path} has no rows of data.options.locales = {', '.join(self.locales)}")
        return table.assign(product_id=table["product_id"].astype(str))


def _some_queries(judged: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    there = judged[["product_locale", "query"]].drop_duplicates()
    drawn = numpy_stream(seed, "queries").permutation(len(there))[:count]
    return judged.merge(there.iloc[np.sort(drawn)], on=["product_locale", "query"])


def _texts(column: "pd.Series[str]") -> list[str]:
    """Return the column with missing values replaced by empty strings."""
    return column.fillna("").astype(str).tolist()
