"""The file of a catalogue: products with an id and a title, in CSV, TSV, Parquet or JSON lines."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fed_distill.data.cleaning import clean_text
from fed_distill.data.table_file import read_columns, texts_of
from fed_distill.errors import DataError
from fed_distill.serving.index import Product

_SHOWN = 5


@dataclass(frozen=True)
class ProductsFile:
    """products: those with a usable title, in the order of the file; white space in titles is collapsed and personal
    data masked. skipped: the number of others by reason, and where the first ones are, in words."""

    products: tuple[Product, ...]
    skipped: Counter[str]
    first_skipped: tuple[str, ...]


def read_products(
    path: Path, id_column: str, title_column: str, max_characters: int, encoding: str = ""
) -> ProductsFile:
    """Read a catalogue; rows whose title is empty or has more than ``max_characters`` characters are skipped.

    :param encoding: of a text file that is in neither UTF-8 nor UTF-16
    :raises DataError: the file or a column cannot be read, an id is empty or occurs twice, or no title is usable; the
        message has the number of the row, from 1
    """
    for name, option in ((id_column, "--id-column"), (title_column, "--title-column")):
        if not name:
            raise DataError(f"{option} is empty: name a column of {path}")
    columns = read_columns(path, [id_column, title_column], "--id-column and --title-column", encoding)
    ids, titles = texts_of(path, columns, id_column), texts_of(path, columns, title_column)
    rows: dict[str, int] = {}
    products: list[Product] = []
    skipped: Counter[str] = Counter()
    first: list[str] = []
    for row, (id, title) in enumerate(zip(ids, titles, strict=True), start=1):
        if not id:
            raise DataError(f"{path}, row {row}: column {id_column!r} is empty: give each product an id")
        if id in rows:
            raise DataError(
                f"{path}, row {row}: id {id!r} is that of row {rows[id]}: give each product an id of its own"
            )
        rows[id] = row
        try:
            products.append(Product(id, clean_text(title or "", f"the title of row {row}", max_characters)))
        except DataError as error:
            skipped["empty" if not (title or "").strip() else "too long"] += 1
            if len(first) < _SHOWN:
                first.append(str(error))
    if not products:
        raise DataError(f"{path}: no title in column {title_column!r} can be used: {first[0]}")
    return ProductsFile(tuple(products), skipped, tuple(first))
