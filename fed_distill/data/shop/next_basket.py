"""A source of baskets: what a customer bought at a merchant before, and what is in the next basket.

The split is by time, as a model is used after it was trained: all training baskets are before those of validation, and
these before those of the test (Ji et al. 2023, "A critical study on data leakage in recommender system offline
evaluation", ACM TOIS). Validation and test have each customer's first basket in their period.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from fed_distill.config import DataConfig
from fed_distill.data.cleaning import clean
from fed_distill.data.dataset import IntArray
from fed_distill.data.examples import UNLABELED, Examples, Ranking, Task, most_queries
from fed_distill.data.labeled import factorize
from fed_distill.data.public_texts import PublicTexts, Texts
from fed_distill.data.shop.tables import ShopTables, Times
from fed_distill.data.tasks import HISTORY_SEPARATOR, NEXT_BASKET
from fed_distill.errors import DataError
from fed_distill.seeds import numpy_stream
from fed_distill.text.cleaning import collapse

BOUGHT, NOT_BOUGHT = range(2)
_MOST_BOUGHT = 10
"""Maximum number of products of a basket in the ranking view."""
_ROUNDS = 20


@dataclass(frozen=True)
class BasketOptions:
    """Options for making examples of baskets.

    history: number of purchases in a history. pairs_per_row: pairs per basket: one product in it, then products of the
    merchant that are not. max_pairs: maximum per merchant and part of the split. ranking_queries: size of the ranking
    view. ranking_candidates: candidates of a query; 0: all products of the merchant. starts: first days of validation
    and test, or None: by shares of the baskets. independent: make a customer's examples of this customer's purchases
    and the list of products alone: at most max_pairs per customer, and products of the list instead of those that the
    merchant sold. The ranking view, which is for evaluation, is made of the merchant's as always.
    """

    history: int
    pairs_per_row: int
    max_pairs: int
    ranking_queries: int
    ranking_candidates: int
    starts: tuple[np.datetime64, np.datetime64] | None = None
    independent: bool = False


@dataclass(frozen=True)
class NextBasket:
    """Baskets of customers who had bought at the same merchant before; implements ``Source``. Create it with `build`.

    owners, groups: merchant and customer of each basket ``[n]``. parts: see ``HasParts``. histories: the customer's
    last purchases at the merchant, positions in ``items``, oldest first; a product that was bought twice is in it
    twice. baskets: products of the basket, positions in ``items``. items: distinct titles. assortments: of each
    merchant, what it sold before the period of validation. end: first time of this period.
    """

    names: tuple[str, ...]
    owners: IntArray
    groups: IntArray
    parts: IntArray
    histories: tuple[tuple[int, ...], ...]
    baskets: tuple[tuple[int, ...], ...]
    items: tuple[str, ...]
    assortments: tuple[IntArray, ...]
    end: np.datetime64
    customers: tuple[str, ...]
    options: BasketOptions
    account: Mapping[str, Any] = field(default_factory=dict)
    task: Task = NEXT_BASKET
    domains: None = None

    @classmethod
    def build(cls, tables: ShopTables, config: DataConfig, options: BasketOptions) -> Self:
        """Clean the titles, find each basket's history and split by time.

        :raises DataError: no customer has two baskets at one merchant, or the purchases of too few days
        """
        items, item_of, account = items_of(tables, config.max_characters)
        known = item_of[tables.products] >= 0
        edges = np.searchsorted(tables.baskets[known], np.arange(len(tables.times) + 1))
        sold = item_of[tables.products[known]].tolist()
        contents = [tuple(dict.fromkeys(sold[start:stop])) for start, stop in itertools.pairwise(edges.tolist())]
        before: dict[tuple[int, int], list[int]] = defaultdict(list)
        rows, histories = [], []
        for basket, key in enumerate(zip(tables.merchants.tolist(), tables.customers.tolist(), strict=True)):
            earlier = before[key]
            if earlier and contents[basket]:
                rows.append(basket)
                histories.append(tuple(earlier[-options.history :]))
            earlier.extend(contents[basket])
        if not rows:
            raise DataError("no customer has two baskets at one merchant: next-basket needs purchases over time")
        owners, customers = tables.merchants[rows], tables.customers[rows]
        parts, end = _by_time(tables.times[rows], owners, customers, config, options.starts)
        trained = np.searchsorted(tables.times, end)
        account["purchases"]["validation from"] = str(end.astype("datetime64[D]"))
        return cls(
            tables.merchant_names,
            owners,
            customers,
            parts,
            tuple(histories),
            tuple(contents[row] for row in rows),
            items,
            _assortments(contents[:trained], tables.merchants[:trained], len(tables.merchant_names)),
            end,
            tables.customer_names,
            options,
            account,
        )

    @property
    def independent_users(self) -> bool:
        """Whether the examples of a customer depend on nobody else's purchases; see ``HasUsers``."""
        return self.options.independent

    def examples(self, rows: IntArray, merchant: str, part: str, seed: int) -> Examples:
        """Make at most ``max_pairs`` pairs of a history and a product of the merchant."""
        if not self.options.independent:
            return self._pairs(rows, self.options.max_pairs, numpy_stream(seed, "baskets", merchant, part))
        by_customer = rows[np.argsort(self.groups[rows], kind="stable")]
        edges = np.flatnonzero(np.diff(self.groups[by_customer])) + 1
        listed = np.arange(len(self.items))
        return Examples.concatenate(
            [
                self._pairs(
                    own,
                    self.options.max_pairs,
                    numpy_stream(seed, "baskets", merchant, part, self.customers[self.groups[own[0]]]),
                    listed,
                )
                for own in np.split(by_customer, edges)
                if len(own)
            ]
            or [self._examples(rows, rows)]
        )

    def proxy(self, rows: IntArray, size: int, seed: int) -> Examples:
        """Make further pairs of the public merchants' customers."""
        rng = numpy_stream(seed, "proxy")
        found: dict[tuple[str, str], tuple[int, int]] = {}
        tables: list[Examples] = []
        for _ in range(_ROUNDS if len(rows) else 0):
            tables.append(self._pairs(rows, size, rng))
            for at, key in enumerate(zip(tables[-1].texts, tables[-1].pairs or (), strict=True)):
                found.setdefault(key, (len(tables) - 1, at))
            if len(found) >= size:
                break
        if not tables:
            return self._pairs(rows, 0, rng)
        starts = np.cumsum([0, *map(len, tables)])
        places = np.array([starts[table] + at for table, at in found.values()], dtype=np.int64)
        return Examples.concatenate(tables).take(np.sort(rng.permutation(places)[:size]))

    def public_texts(self, rows: IntArray, held_out: IntArray) -> PublicTexts:
        """Return the titles that were sold in ``rows``; histories are private.

        Titles of ``held_out`` are not left out: what is predicted is a purchase, and products are sold again.
        """
        first: dict[str, int] = {}
        for row in np.sort(rows).tolist():
            for item in self.baskets[row]:
                first.setdefault(self.items[item], row)
        values = tuple(sorted(first))
        return PublicTexts(None, Texts(values, np.array([first[value] for value in values], dtype=np.int64)))

    def true_classes(self, rows: IntArray, text_rows: IntArray, pair_rows: IntArray | None) -> IntArray:
        """Return `UNLABELED`: nobody knows what the customer of an imitated history would buy."""
        return np.full(len(text_rows), UNLABELED, dtype=np.int64)

    def ranking(self, rows: IntArray, part: str, seed: int) -> Ranking | None:
        """Make the ranking view: histories with products of the next basket and random others of the merchant."""
        rng = numpy_stream(seed, "ranking", part)
        queries = rng.permutation(rows)[: most_queries(part, self.options.ranking_queries)]
        found, sizes = [], []
        for row in queries.tolist():
            bought = rng.permutation(self.baskets[row])[:_MOST_BOUGHT]
            others = np.setdiff1d(self.assortments[self.owners[row]], self.baskets[row])
            if self.options.ranking_candidates:
                others = rng.permutation(others)[: max(self.options.ranking_candidates - len(bought), 0)]
            if len(others):
                found.append(np.concatenate([bought, others]))
            sizes.append(len(bought) + len(others) if len(others) else 0)
        if not found:
            return None
        asked = np.repeat(queries, sizes)
        examples = self._examples(asked, np.concatenate(found))
        return Ranking(examples, factorize(np.repeat(np.arange(len(queries)), sizes).tolist()))

    def _pairs(self, rows: IntArray, most: int, rng: np.random.Generator, listed: IntArray | None = None) -> Examples:
        """Make at most ``most`` pairs; products that are not in the basket are of ``listed``, or of the assortment."""
        slots = self.options.pairs_per_row
        chosen = np.sort(rng.permutation(rows)[: -(-most // slots)])
        asked = np.repeat(chosen, slots)[:most]
        shown = np.empty(len(asked), dtype=np.int64)
        for at, row in enumerate(asked.tolist()):
            bought, offered = self.baskets[row], self.assortments[self.owners[row]] if listed is None else listed
            shown[at] = rng.choice(bought) if at % slots == 0 or not len(offered) else rng.choice(offered)
        return self._examples(asked, shown)

    def _examples(self, rows: IntArray, items: IntArray) -> Examples:
        """Return pairs of the rows' histories and ``items``, labelled by the rows' baskets."""
        bought = [item in self.baskets[row] for row, item in zip(rows.tolist(), items.tolist(), strict=True)]
        texts = {
            row: HISTORY_SEPARATOR.join(self.items[at] for at in self.histories[row]) for row in set(rows.tolist())
        }
        return Examples(
            texts=tuple(texts[row] for row in rows.tolist()),
            pairs=tuple(self.items[item] for item in items.tolist()),
            labels=np.where(bought, BOUGHT, NOT_BOUGHT).astype(np.int64),
            groups=self.groups[rows],
            merchants=tuple(self.names[owner] for owner in self.owners[rows].tolist()),
        )


def items_of(tables: ShopTables, max_characters: int) -> tuple[tuple[str, ...], IntArray, dict[str, Any]]:
    """Return the distinct clean titles, of each product its position among them or -1, and the account of the lines."""
    cleaned = clean(tables.titles, None, None, None, max_characters)
    distinct = {text: place for place, text in enumerate(dict.fromkeys(cleaned.texts))}
    place = {
        collapse(tables.titles[row]): distinct[text] for row, text in zip(cleaned.rows, cleaned.texts, strict=True)
    }
    item_of = np.array([place.get(collapse(title), -1) for title in tables.titles], dtype=np.int64)
    kept = int((item_of[tables.products] >= 0).sum())
    if not kept:
        raise DataError(
            f"no purchase is left: of {len(tables.products) + tables.dropped:,} rows {tables.dropped:,} have a product "
            f"that is not listed, and the others one without a usable title (1 to {max_characters} characters, "
            "data.max_characters)"
        )
    account = {
        **cleaned.account,
        "rows_read": len(tables.products) + tables.dropped,
        "rows_kept": kept,
        "dropped": {"unknown product": tables.dropped, "no usable title": len(tables.products) - kept},
        "purchases": {
            "customers": len(tables.customer_names),
            "baskets": len(tables.times),
            "first day": str(tables.times[0].astype("datetime64[D]")),
            "last day": str(tables.times[-1].astype("datetime64[D]")),
        },
    }
    return tuple(distinct), item_of, account


def _by_time(
    times: Times,
    owners: IntArray,
    customers: IntArray,
    config: DataConfig,
    given: tuple[np.datetime64, np.datetime64] | None = None,
) -> tuple[IntArray, np.datetime64]:
    """Return the part of each row, and the first time of the period of validation.

    A period has whole days, and about its share of the rows, or begins on the ``given`` days; without a share it is
    empty. Rows are ordered by time.
    """
    days = times.astype("datetime64[D]")
    if given is not None:
        starts = list(given)
        if not (days[0] < given[0] < given[1] <= days[-1]):
            raise DataError(
                f"data.options.valid_from = {given[0]} and test_from = {given[1]} must be in this order and within the "
                f"days of baskets with a history, after {days[0]} and not after {days[-1]}"
            )
    else:
        shares = (1.0 - config.valid_share - config.test_share, 1.0 - config.test_share)
        starts = [days[int(share * len(days))] if share < 1.0 else days[-1] + 1 for share in shares]
        if starts[0] == days[0] or (config.valid_share and config.test_share and starts[0] == starts[1]):
            raise DataError(
                f"the baskets of {len(np.unique(days))} days cannot be split by time into training, validation and "
                "test: lower data.valid_share and data.test_share, or use more days"
            )
    period = np.searchsorted(np.array(starts), days, side="right")
    first = np.unique(np.stack([period, owners, customers]), axis=1, return_index=True)[1]
    parts = np.where(period == 0, 0, -1)
    parts[first] = period[first]
    return parts, starts[0].astype("datetime64[s]")


def _assortments(contents: list[tuple[int, ...]], merchants: IntArray, count: int) -> tuple[IntArray, ...]:
    sold: list[set[int]] = [set() for _ in range(count)]
    for merchant, content in zip(merchants.tolist(), contents, strict=True):
        sold[merchant].update(content)
    return tuple(np.array(sorted(items), dtype=np.int64) for items in sold)
