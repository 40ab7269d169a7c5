"""WANDS, Wayfair's product search: 233,448 judged pairs of 480 queries and 42,994 products, in English.

Chen et al. 2022, *WANDS: Dataset for Product Search Relevance Assessment* (ECIR; MIT licence,
github.com/wayfair/WANDS). The user downloads the three tab-separated files. It has three grades, ESCI has four. The
merchant is the product class, and the domain the department above it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.dataset import Source
from fed_distill.data.examples import Task
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.tasks import choose_task, label_reader
from fed_distill.errors import DataError

GRADED = Task(
    name="relevance", classes=("exact", "partial", "irrelevant"), pair=True, positive="exact", gains=(1.0, 0.5, 0.0)
)
"""Grade of a (query, product) pair; the paper gives no gains, so they are linear in the grade."""

_HIERARCHY = "category hierarchy"


@dataclass(frozen=True)
class Wands:
    """Wayfair's judged queries; task ``relevance`` with three grades, and the product class as merchant.

    path: folder of query.csv, product.csv and label.csv. ranking_queries: maximum number of queries in the ranking
    view. The domain is a department such as Furniture; a product with several classes belongs to the first.
    """

    path: Path
    ranking_queries: Annotated[int, Field(ge=1)] = 2000

    def read(self, config: DataConfig) -> Source:
        """Read and join the three files; products without a class have no merchant and are dropped."""
        choose_task(config.task, "wands", ("relevance",))
        queries = self._table("query.csv", ["query_id", "query"])
        products = self._table("product.csv", ["product_id", "product_name", "product_class", _HIERARCHY])
        rows = (
            self._table("label.csv", ["query_id", "product_id", "label"])
            .merge(queries.drop_duplicates("query_id"), how="left", on="query_id")
            .merge(products.drop_duplicates("product_id"), how="left", on="product_id")
            .fillna("")
        )
        read_label = label_reader(GRADED)
        return LabeledRows.build(
            GRADED,
            texts=rows["query"].tolist(),
            pairs=rows["product_name"].tolist(),
            labels=[read_label(label) for label in rows["label"]],
            merchants=[name.split("|")[0].strip() for name in rows["product_class"]],
            domains=[name.split("/")[0].strip() for name in rows[_HIERARCHY]],
            config=config,
            ranking_queries=self.ranking_queries,
            public_texts=True,
        )

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame:
        """Read columns of one file as text."""
        path = self.path / name
        try:
            table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} does not exist: data.options.path is the folder of query.csv, product.csv and label.csv, "
                "from github.com/wayfair/WANDS"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        # The documentation has category_hierarchy, the file "category hierarchy".
        table = table.rename(columns={"category_hierarchy": _HIERARCHY})
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; it has: {', '.join(table.columns)}")
        if table.empty:
            raise DataError(f"{path} has no rows")
        return table[columns]
