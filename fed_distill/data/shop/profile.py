"""Segments of customers from what they bought: a text of a customer's most frequent products at one merchant.

Profiling of people is regulated: in the European Union, decisions that rest on it alone need a legal basis (GDPR,
article 22), and data that reveal health, religion or origin a special one (article 9), which purchases can do.
"""

from collections import Counter, defaultdict

from fed_distill.config import DataConfig
from fed_distill.data.examples import UNLABELED
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.shop.next_basket import items_of
from fed_distill.data.shop.tables import ShopTables
from fed_distill.data.tasks import HISTORY_SEPARATOR, category_task, label_reader

PROFILE = "profile"
_FEWEST_BASKETS = 3
"""Minimum number of baskets of a customer at a merchant."""


def profiles(tables: ShopTables, config: DataConfig, history: int) -> LabeledRows:
    """Return a row for each customer of a merchant whose segment is known.

    A customer of several merchants is a group, which is not split between training and test.

    :param tables: purchases, with segments
    :param config: for cleaning and for the assignment of merchants
    :param history: number of products in a text, the most frequent first
    """
    items, item_of, _ = items_of(tables, config.max_characters)
    bought: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for basket, item in zip(tables.baskets.tolist(), item_of[tables.products].tolist(), strict=True):
        if item >= 0:
            bought[int(tables.merchants[basket]), int(tables.customers[basket])][item] += 1
    baskets = Counter(zip(tables.merchants.tolist(), tables.customers.tolist(), strict=True))
    known = [key for key in sorted(bought) if tables.segments[key[1]]]
    keys = [key for key in known if baskets[key] >= _FEWEST_BASKETS]
    task = category_task((tables.segments[customer] for _, customer in keys), PROFILE)
    read_label = label_reader(task)
    labels = [read_label(tables.segments[customer]) for _, customer in keys]
    assert UNLABELED not in labels
    rows = LabeledRows.build(
        task,
        [HISTORY_SEPARATOR.join(items[item] for item in _most(bought[key], history)) for key in keys],
        labels,
        config,
        merchants=[tables.merchant_names[merchant] for merchant, _ in keys],
        groups=[customer for _, customer in keys],
        titles=history,
    )
    few = f"fewer than {_FEWEST_BASKETS} baskets"
    return rows.left_out({"unknown segment": len(bought) - len(known), few: len(known) - len(keys)})


def _most(counts: Counter[int], number: int) -> list[int]:
    return sorted(counts, key=lambda item: (-counts[item], item))[:number]
