"""Write tables of the generated marketplace, for those who want to try the commands before they have a table."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.dataset import Source
from fed_distill.data.marketplace import Marketplace
from fed_distill.errors import DataError
from fed_distill.storage.files import make_folder, write_atomic

GRADES, REVIEWS, PRODUCTS, CATALOGUE = "grades.csv", "reviews.csv", "products.csv", "catalogue.csv"
_ROWS = 150
"""Mean number of offers or reviews of a merchant."""


def write_sample(folder: Path) -> dict[Path, int]:
    """Write four tables of twelve English merchants.

    ``grades.csv``: graded pairs (query, title, grade, shop). ``reviews.csv``: texts (review, sentiment, shop).
    ``products.csv``: the titles of all shops (id, title). ``catalogue.csv``: their queries and titles, each apart and
    sorted, so that a row says nothing of what belongs together. The same files are written each time.

    :return: rows of each file
    :raises DataError: one of the files exists; then nothing is written
    """
    paths = [folder / name for name in (GRADES, REVIEWS, PRODUCTS, CATALOGUE)]
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists: name another folder with --to")
    shops = Marketplace(rows=_ROWS, languages=("en",))
    grades, titles = _labelled(shops, "relevance")
    queries = sorted({query for query, *_ in grades})
    reviews, _ = _labelled(shops, "sentiment")
    products = [(str(number), title) for number, title in enumerate(sorted(titles), 1)]
    make_folder(folder)
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [
        (("query", "title", "grade", "shop"), grades),
        (("review", "sentiment", "shop"), reviews),
        (("id", "title"), products),
        (("query", "title"), list(zip_longest(queries, sorted(titles), fillvalue=""))),
    ]
    for path, (header, rows) in zip(paths, tables, strict=True):
        write_atomic(path, _csv([header, *rows]))
    return {path: len(rows) for path, (_, rows) in zip(paths, tables, strict=True)}


def _labelled(shops: Marketplace, task: str) -> tuple[list[tuple[str, ...]], set[str]]:
    """Return the labelled rows of all merchants, and all second texts."""
    source: Source = shops.read(DataConfig(dataset="marketplace", task=task))
    rows: list[tuple[str, ...]] = []
    seconds: set[str] = set()
    for number, name in enumerate(source.names):
        examples = source.examples(np.flatnonzero(source.owners == number), name, "train", 0)
        labels = [source.task.classes[label] for label in examples.labels.tolist()]
        texts = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
        rows += list(zip(*texts, labels, examples.merchants, strict=True))
        seconds.update(examples.pairs or ())
    return rows, seconds


def _csv(rows: Iterable[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
