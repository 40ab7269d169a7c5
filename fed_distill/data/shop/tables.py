"""Tables of a shop: purchases, products and customers, from Parquet or CSV files in one folder.

``transactions`` has a line for each product in a basket, ``products`` a line for each product, and ``customers``, which
is read for profiles only, a line for each customer whose segments are known. The order of lines has no meaning. The
files of campaigns are read in ``campaigns``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from fed_distill.data.dataset import IntArray
from fed_distill.data.partition import natural
from fed_distill.data.tasks import label_text, undivided
from fed_distill.errors import DataError

KINDS = (".parquet", ".csv", ".csv.gz")
_OFFSET = r"(\d[T ]\d.*?)\s*(?:Z|[+-]\d\d(?::?\d\d)?)$"
"""Offset from UTC at the end of a time of ISO 8601, after the time without it."""
Times = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class ShopColumns:
    """Names of the columns in the files.

    title: columns of ``products``, whose values are joined by spaces; without the first, a title is unknown. segment:
    column of ``customers``; "" to not read that file.
    """

    customer: str = "customer"
    merchant: str = "merchant"
    basket: str = "basket"
    product: str = "product"
    time: str = "time"
    title: tuple[str, ...] = ("title",)
    segment: str = ""
    campaign: str = "campaign"
    start: str = "start"
    end: str = "end"
    treated: str = "treated"


@dataclass(frozen=True)
class ShopFiles:
    """Names of the files without their endings."""

    transactions: str = "transactions"
    products: str = "products"
    customers: str = "customers"
    campaigns: str = "campaigns"
    campaign_products: str = "campaign_products"


@dataclass(frozen=True)
class ShopTables:
    """Baskets and what was in them. Baskets are numbered by time; ties are in natural order of their names.

    customers, merchants: int64 ``[baskets]``, positions in ``customer_names`` and ``merchant_names``, which are in
    natural order. times: datetime64[s] ``[baskets]``, when the first product was sold. baskets, products: int64
    ``[lines]``, ordered by basket, then by time, then by the product's name; products are positions in ``titles``, in
    natural order of their names. titles: of each product, "" where unknown.
    segments: of each customer, "" where unknown; empty if none is read. dropped: lines of unknown products.
    product_names: of each product.
    """

    customers: IntArray
    merchants: IntArray
    times: Times
    baskets: IntArray
    products: IntArray
    titles: tuple[str, ...]
    customer_names: tuple[str, ...]
    merchant_names: tuple[str, ...]
    segments: tuple[str, ...] = ()
    dropped: int = 0
    product_names: tuple[str, ...] = ()


def read_tables(folder: Path, columns: ShopColumns, files: ShopFiles, drop_unknown: bool = False) -> ShopTables:
    """Read the tables of a shop.

    :param folder: folder of the files
    :param columns: names of their columns
    :param files: names of the files
    :param drop_unknown: drop lines of products that are not listed, instead of refusing them
    :raises DataError: a file, column or value is missing, a time is unreadable, a basket has several customers,
        merchants or days, or a product or customer is listed twice or, for a product, not at all
    """
    roles = (columns.customer, columns.merchant, columns.basket, columns.product)
    sold_in, sold = read_columns(folder, files.transactions, (*roles, columns.time))
    listed_in, listed = read_columns(folder, files.products, (columns.product, *columns.title))
    of_listed = column_of(listed, columns.product, listed_in)
    listing = _places(of_listed, "product", listed_in)
    places = {name: place for place, name in enumerate(of_listed.names)}
    of_customer, of_merchant, of_basket, of_product = (column_of(sold, role, sold_in) for role in roles)
    products = np.array([places.get(name, -1) for name in of_product.names], dtype=np.int64)[of_product.numbers]
    unknown = np.flatnonzero(products < 0)
    if len(unknown) and not drop_unknown:
        raise DataError(
            f"{sold_in}, row {unknown[0] + 1}: product {of_product.at(unknown[0])!r} is not in {listed_in.name} "
            f"({len(unknown):,} such rows): list it there, or set data.options.unknown_products = 'drop'"
        )
    times = times_of(sold, columns.time, sold_in)
    first = _first_lines(sold_in, of_basket, {"customer": of_customer.numbers, "merchant": of_merchant.numbers}, times)
    order = np.argsort(times[first], kind="stable")
    baskets = np.argsort(order)[of_basket.numbers]
    lines = np.lexsort((products, times, baskets))
    lines = lines[products[lines] >= 0]
    return ShopTables(
        of_customer.numbers[first][order],
        of_merchant.numbers[first][order],
        times[first][order],
        baskets[lines],
        products[lines],
        _titles(listed.take([listing[name] for name in of_listed.names]), columns.title),
        of_customer.names,
        of_merchant.names,
        _segments(folder, files.customers, columns, of_customer.names) if columns.segment else (),
        len(unknown),
        of_listed.names,
    )


def at_home(tables: ShopTables, early: npt.NDArray[np.bool_]) -> ShopTables:
    """Keep of each customer the baskets at one merchant.

    :param early: which baskets decide, ``[baskets]``: the merchant is where most of the customer's are among these, of
        several such the one visited first; without any of those, where the first of all is
    """
    visits = np.stack([tables.customers, tables.merchants])[:, early]
    keys, since, counts = np.unique(visits, axis=1, return_index=True, return_counts=True)
    best = np.lexsort((since, -counts, keys[0]))
    home = np.zeros(len(tables.customer_names), dtype=np.int64)
    first = np.unique(tables.customers, return_index=True)
    home[first[0]] = tables.merchants[first[1]]
    places = best[np.unique(keys[0][best], return_index=True)[1]]
    home[keys[0][places]] = keys[1][places]
    kept = tables.merchants == home[tables.customers]
    lines = kept[tables.baskets]
    return replace(
        tables,
        customers=tables.customers[kept],
        merchants=tables.merchants[kept],
        times=tables.times[kept],
        baskets=(np.cumsum(kept) - 1)[tables.baskets[lines]],
        products=tables.products[lines],
    )


def _first_lines(path: Path, baskets: "Column", same: Mapping[str, IntArray], times: Times) -> IntArray:
    """Return the earliest line of each basket; all its lines must agree in the columns ``same`` and in the day."""
    by_time = np.lexsort((times, baskets.numbers))
    first = by_time[np.unique(baskets.numbers[by_time], return_index=True)[1]]
    for what, of_line in (*same.items(), ("day", times.astype("datetime64[D]"))):
        other = np.flatnonzero(of_line != of_line[first][baskets.numbers])
        if len(other):
            raise DataError(
                f"{path}, row {other[0] + 1}: basket {baskets.at(other[0])!r} has another {what} in row "
                f"{first[baskets.numbers[other[0]]] + 1}: give each purchase of a customer a basket of its own"
            )
    return first


def find_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file of one of ``KINDS``, or None; raise DataError if there are several."""
    found = [path for kind in KINDS if (path := folder / f"{name}{kind}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {found[0].name} and {found[1].name}: keep one of them")
    return found[0] if found else None


def read_columns(folder: Path, name: str, columns: Sequence[str]) -> tuple[Path, pa.Table]:
    """Return the path of a file and its ``columns``, those of CSV files as strings."""
    path = find_file(folder, name)
    if path is None:
        near = sorted(one.name for one in folder.iterdir() if one.name.lower().startswith(name))
        there = f"; it has {', '.join(near)}" if near else ""
        raise DataError(f"{folder} has no {name}{', '.join(KINDS[:-1])} or {KINDS[-1]}{there}")
    wanted = list(dict.fromkeys(columns))
    try:
        if path.suffix == ".parquet":
            found = parquet.read_schema(path).names
            _check_names(path, found, wanted)
            table = parquet.read_table(path, columns=wanted)
        else:
            with csv.open_csv(path) as opened:
                found = opened.schema.names
            _check_names(path, found, wanted)
            convert = csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()),
                include_columns=wanted,
                strings_can_be_null=True,
                null_values=[""],
            )
            table = csv.read_csv(path, convert_options=convert)
    except (OSError, pa.ArrowInvalid) as error:
        as_what = "" if path.suffix == ".parquet" else " as CSV with commas, in UTF-8"
        raise DataError(f"{path} cannot be read{as_what}: {error}") from error
    nested = [column for column in wanted if pa.types.is_nested(table[column].type)]
    if nested:
        raise DataError(f"{path}: column {nested[0]!r} has {table[nested[0]].type} values, not texts or numbers")
    if not len(table):
        raise DataError(f"{path} has no rows")
    return path, table


def _check_names(path: Path, found: list[str], wanted: Sequence[str]) -> None:
    """Raise DataError unless each of the ``wanted`` columns is among the ``found`` ones once."""
    for name in wanted:
        if name not in found:
            raise DataError(
                f"{path} has no column {name!r}; it has: {', '.join(found)}. Name it in data.options.columns"
            )
        if found.count(name) > 1:
            raise DataError(f"{path} has {found.count(name)} columns {name!r}: keep one of them")


@dataclass(frozen=True)
class Column:
    """A column of names or numbers. names: distinct, in natural order; numbers: positions in it ``[rows]``."""

    names: tuple[str, ...]
    numbers: IntArray

    def at(self, row: int) -> str:
        """Return the name in a row."""
        return self.names[int(self.numbers[row])]


def column_of(table: pa.Table, column: str, path: Path) -> Column:
    """Return a column, in which no value may be missing."""
    codes, values = pd.factorize(table[column].to_pandas())
    texts = [label_text(value) for value in values]
    missing = np.flatnonzero((codes < 0) | np.isin(codes, [at for at, text in enumerate(texts) if not text]))
    if len(missing):
        raise DataError(f"{path}, row {missing[0] + 1}: {column!r} is empty")
    names = tuple(sorted(set(texts), key=natural))
    places = {name: place for place, name in enumerate(names)}
    return Column(names, np.array([places[text] for text in texts], dtype=np.int64)[codes])


def times_of(table: pa.Table, column: str, path: Path) -> Times:
    """Return a column of times, in which every value must be one.

    Times are those of the shop's clock, of which campaigns' days are too: an offset from UTC is dropped.
    """
    values = table[column]
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        values = pc.local_timestamp(values)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        found = values.cast(pa.timestamp("s"), safe=False)
    else:
        texts = values.to_pandas().astype("string").str.strip()
        local = texts.str.replace(_OFFSET, r"\1", regex=True).where(texts.str.match(r"\d"))  # neither "now" nor "-5"
        parsed = pd.to_datetime(local, format="ISO8601", errors="coerce")
        found = pa.array(parsed).cast(pa.timestamp("s"), safe=False)
    missing = np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))
    if len(missing):
        raise DataError(
            f"{path}, row {missing[0] + 1}: {column!r} is {values[int(missing[0])].as_py()!r}, which is no time: write "
            "it as 2024-12-31 or 2024-12-31T18:30:00"
        )
    times: Times = found.to_numpy(zero_copy_only=False).astype("datetime64[s]")
    return times


def _places(names: Column, what: str, path: Path) -> dict[str, int]:
    """Return the row of each name, which must be in one row only."""
    first = np.unique(names.numbers, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(names.numbers)), first)
    if len(again):
        raise DataError(
            f"{path}, row {again[0] + 1}: {what} {names.at(again[0])!r} is in an earlier row: keep one of them"
        )
    return dict(zip(names.names, first.tolist(), strict=True))


def _titles(products: pa.Table, columns: Sequence[str]) -> tuple[str, ...]:
    parts = [[label_text(value) for value in products[column].to_pylist()] for column in columns]
    joined = (" ".join(filter(None, title)) if title[0] else "" for title in zip(*parts, strict=True))
    return tuple(undivided(title) for title in joined)


def _segments(folder: Path, name: str, columns: ShopColumns, customers: Sequence[str]) -> tuple[str, ...]:
    path, table = read_columns(folder, name, (columns.customer, columns.segment))
    places = _places(column_of(table, columns.customer, path), "customer", path)
    if places.keys().isdisjoint(customers):
        raise DataError(f"{path} has none of the customers of {ShopFiles().transactions}: are their ids the same?")
    known = [label_text(value) for value in table[columns.segment].to_pylist()]
    return tuple(known[places[customer]] if customer in places else "" for customer in customers)
