"""What a campaign changed: customers who had bought before it began, who were treated or not, and bought or not.

An example is a customer of a campaign at one merchant: the one where most of the customer's baskets before the campaign
are. The history is what the customer bought there before the first day of the campaign, and the outcome is whether one
of the campaign's products was in a basket there from its first day to its last. Nothing else of these days or later is
in an example. A customer of several campaigns is on one side of the split.

Two *placebos* have no effect to be found. ``before`` moves the days of every campaign before its beginning by its own
length: a campaign cannot have changed what was bought before it, so that an effect that is found is a difference
between the customers who were treated and the others which the histories do not explain, and an effect found of the
campaign itself has as much of it. ``permuted`` permutes the treatment among the customers of each campaign: an effect
that is found is the estimator's own.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fed_distill.config import DataConfig
from fed_distill.data.campaign_cells import MARKETING_EFFECT, cell_of
from fed_distill.data.dataset import IntArray
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.shop.next_basket import items_of
from fed_distill.data.shop.tables import (
    ShopColumns,
    ShopFiles,
    ShopTables,
    column_of,
    find_file,
    read_columns,
    times_of,
)
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream

Days = npt.NDArray[np.datetime64]
_FEWEST_BASKETS = 3
"""Minimum number of a customer's baskets at the merchant before a campaign."""
_TREATED = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Campaigns:
    """Campaigns and their customers.

    texts: description of each campaign. starts, ends: first and last day of each, datetime64[D]. products: positions of
    each one's products among the shop's; None for all. customers, campaigns, treated: of each assignment ``[n]``;
    customers are positions in the shop's names.
    """

    texts: tuple[str, ...]
    starts: Days
    ends: Days
    products: tuple[IntArray | None, ...]
    customers: IntArray
    campaigns: IntArray
    treated: npt.NDArray[np.bool_]

    def permuted(self, seed: int) -> "Campaigns":
        """Return the placebo with the treatment of each campaign dealt to its customers at random."""
        treated, rng = self.treated.copy(), numpy_stream(seed, "permuted campaigns")
        for campaign in range(len(self.texts)):
            rows = np.flatnonzero(self.campaigns == campaign)
            treated[rows] = rng.permutation(treated[rows])
        return replace(self, treated=treated)

    def before(self) -> "Campaigns":
        """Return the placebo with the days moved before each campaign by its length."""
        length = self.ends - self.starts + np.timedelta64(1, "D")
        return replace(self, starts=self.starts - length, ends=self.ends - length)


def read_campaigns(folder: Path, columns: ShopColumns, tables: ShopTables, drop_unknown: bool) -> Campaigns:
    """Read ``campaigns`` and, if it exists, ``campaign_products``; a campaign's name is its text.

    :param folder: folder of the files
    :param columns: names of their columns
    :param tables: the shop's purchases
    :param drop_unknown: drop campaigns' products that are not listed, instead of refusing them
    :raises DataError: a file, column or value is missing, a time is unreadable, a customer has no purchase or is twice
        in a campaign, a campaign has several first or last days, ends before it begins or after the last purchase, or
        has no customer in one arm, or a product or campaign is not listed
    """
    files = ShopFiles()
    path, table = read_columns(
        folder, files.campaigns, (columns.customer, columns.campaign, columns.start, columns.end, columns.treated)
    )
    of_customer, of_campaign, of_treated = (
        column_of(table, name, path) for name in (columns.customer, columns.campaign, columns.treated)
    )
    starts, ends = (times_of(table, name, path).astype("datetime64[D]") for name in (columns.start, columns.end))
    known = {name: place for place, name in enumerate(tables.customer_names)}
    seen: set[tuple[str, str]] = set()
    for row in range(len(table)):
        customer, name = of_customer.at(row), of_campaign.at(row)
        if customer not in known:
            raise DataError(f"{path}, row {row + 1}: customer {customer!r} has no purchase in {files.transactions}")
        if of_treated.at(row).lower() not in _TREATED:
            raise DataError(f"{path}, row {row + 1}: {columns.treated!r} is {of_treated.at(row)!r}: write yes or no")
        if (customer, name) in seen:
            raise DataError(f"{path}, row {row + 1}: customer {customer!r} is in an earlier row of campaign {name!r}")
        seen.add((customer, name))
    treated = np.array([_TREATED[name.lower()] for name in of_treated.names])[of_treated.numbers]
    first = np.unique(of_campaign.numbers, return_index=True)[1]
    for what, days in (("first", starts), ("last", ends)):
        other = np.flatnonzero(days != days[first][of_campaign.numbers])
        if len(other):
            raise DataError(
                f"{path}, row {other[0] + 1}: campaign {of_campaign.at(other[0])!r} has another {what} day than in row "
                f"{first[of_campaign.numbers[other[0]]] + 1}: give each period a campaign of its own"
            )
    last = tables.times.max().astype("datetime64[D]")
    for place, name in enumerate(of_campaign.names):
        begins, stops = starts[first[place]], ends[first[place]]
        if stops < begins:
            raise DataError(f"{path}: campaign {name!r} ends on {stops}, before it begins on {begins}")
        if stops > last:
            raise DataError(
                f"{path}: campaign {name!r} ends on {stops}, and the last purchase is of {last}: who bought is not "
                "known yet, leave it out"
            )
        arms = treated[of_campaign.numbers == place]
        if arms.all() or not arms.any():
            raise DataError(
                f"{path}: all customers of campaign {name!r} have {columns.treated} = {'yes' if arms.all() else 'no'}: "
                "an effect needs customers of both arms"
            )
    order = np.lexsort((of_customer.numbers, of_campaign.numbers))  # that of the lines has no meaning
    return Campaigns(
        of_campaign.names,
        starts[first],
        ends[first],
        _products(folder, columns, tables, of_campaign.names, drop_unknown),
        np.array([known[name] for name in of_customer.names], dtype=np.int64)[of_customer.numbers][order],
        of_campaign.numbers[order],
        treated[order],
    )


def _products(
    folder: Path, columns: ShopColumns, tables: ShopTables, names: Sequence[str], drop_unknown: bool
) -> tuple[IntArray | None, ...]:
    """Return the products of each campaign; all, without the file."""
    name = ShopFiles().campaign_products
    if find_file(folder, name) is None:
        return (None,) * len(names)
    path, table = read_columns(folder, name, (columns.campaign, columns.product))
    of_campaign, of_product = column_of(table, columns.campaign, path), column_of(table, columns.product, path)
    places = {product: place for place, product in enumerate(tables.product_names)}
    found: dict[str, list[int]] = defaultdict(list)
    for row in range(len(table)):
        product, campaign = of_product.at(row), of_campaign.at(row)
        if campaign not in names:
            raise DataError(f"{path}, row {row + 1}: campaign {campaign!r} is not in {ShopFiles().campaigns}")
        if product in places:
            found[campaign].append(places[product])
        elif not drop_unknown:
            raise DataError(
                f"{path}, row {row + 1}: product {product!r} is not in {ShopFiles().products}: list it there, or set "
                "data.options.unknown_products = 'drop'"
            )
    missing = [campaign for campaign in names if campaign not in found]
    if missing:
        raise DataError(f"{path} has no product of campaign {missing[0]!r}: list them, or leave the file out")
    return tuple(np.array(found[campaign], dtype=np.int64) for campaign in names)


def before_campaigns(tables: ShopTables, campaigns: Campaigns) -> npt.NDArray[np.bool_]:
    """Return which baskets are before the first campaign that a customer is an example of, bool ``[baskets]``.

    They decide at which merchant a customer is at home: a later basket can be one that the campaign made.
    """
    days = tables.times.astype("datetime64[D]")
    until = np.full(len(tables.customer_names), np.datetime64("NaT"), dtype="datetime64[D]")
    for campaign in np.argsort(campaigns.starts, kind="stable"):
        start = campaigns.starts[campaign]
        visits = np.stack([tables.customers, tables.merchants])[:, days < start]
        keys, counts = np.unique(visits, axis=1, return_counts=True)
        ready = np.intersect1d(keys[0][counts >= _FEWEST_BASKETS], campaigns.customers[campaigns.campaigns == campaign])
        until[ready[np.isnat(until[ready])]] = start
    found: npt.NDArray[np.bool_] = days < until[tables.customers]
    return found


def campaign_rows(tables: ShopTables, campaigns: Campaigns, config: DataConfig, history: int) -> LabeledRows:
    """Return a row for each customer of a campaign who had bought often enough before.

    :param tables: the shop's purchases
    :param campaigns: campaigns and their customers
    :param config: for cleaning and for the assignment of merchants
    :param history: number of titles in a history, the latest ones, oldest first
    :raises DataError: no customer has bought often enough before a campaign
    """
    items, item_of, _ = items_of(tables, config.max_characters)
    days = tables.times.astype("datetime64[D]")
    contents: dict[int, list[int]] = defaultdict(list)
    for basket, item in zip(tables.baskets.tolist(), item_of[tables.products].tolist(), strict=True):
        if item >= 0:
            contents[basket].append(item)
    baskets_of: dict[int, list[int]] = defaultdict(list)
    for basket, customer in enumerate(tables.customers.tolist()):
        baskets_of[customer].append(basket)
    promoted = [_sold_in(tables, products) for products in campaigns.products]
    texts, pairs, owners, groups, treated, bought = [], [], [], [], [], []
    assigned = zip(campaigns.customers.tolist(), campaigns.campaigns.tolist(), campaigns.treated.tolist(), strict=True)
    for customer, campaign, was_treated in assigned:
        own = np.array(baskets_of[customer], dtype=np.int64)
        before = own[days[own] < campaigns.starts[campaign]]
        counts = np.bincount(tables.merchants[before], minlength=1)
        merchant = int(counts.argmax())
        if counts[merchant] < _FEWEST_BASKETS:
            continue
        there = before[tables.merchants[before] == merchant]
        titles = _latest(contents, there.tolist(), history)
        within = own[(days[own] >= campaigns.starts[campaign]) & (days[own] <= campaigns.ends[campaign])]
        texts.append(HISTORY_SEPARATOR.join(items[item] for item in titles))
        pairs.append(campaigns.texts[campaign])
        owners.append(tables.merchant_names[merchant])
        groups.append(customer)
        treated.append(was_treated)
        bought.append(bool(promoted[campaign][within[tables.merchants[within] == merchant]].any()))
    if not texts:
        raise DataError(
            f"no customer has {_FEWEST_BASKETS} baskets at a merchant before a campaign: marketing-effect needs "
            "purchases before it"
        )
    labels = cell_of(np.array(treated), np.array(bought))
    rows = LabeledRows.build(
        MARKETING_EFFECT, texts, labels, config, pairs=pairs, merchants=owners, groups=groups, titles=history
    )
    return rows.left_out({f"fewer than {_FEWEST_BASKETS} baskets before": len(campaigns.customers) - len(texts)})


def _sold_in(tables: ShopTables, products: IntArray | None) -> npt.NDArray[np.bool_]:
    """Return which baskets have one of ``products``, bool ``[baskets]``."""
    if products is None:
        return np.ones(len(tables.times), dtype=np.bool_)
    wanted = np.zeros(len(tables.titles), dtype=np.bool_)
    wanted[products] = True
    found = np.zeros(len(tables.times), dtype=np.bool_)
    found[tables.baskets[wanted[tables.products]]] = True
    return found


def _latest(contents: Mapping[int, list[int]], baskets: Sequence[int], number: int) -> list[int]:
    """Return the latest distinct products of ``baskets``, which are in order of time, oldest first."""
    found: dict[int, None] = {}
    for basket in reversed(baskets):
        for item in reversed(contents.get(basket, [])):
            found.setdefault(item)
        if len(found) >= number:
            break
    return list(found)[:number][::-1]
