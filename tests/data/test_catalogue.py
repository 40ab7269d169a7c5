from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data.catalogue import Catalogue, PairOptions
from fed_distill.errors import DataError

CONFIG = DataConfig()
DEFAULTS = PairOptions()


def catalogue(offers_a_product: int = 3, merchants: int = 2, options: PairOptions = DEFAULTS) -> Catalogue:
    """24 products in 6 kinds and 3 families: product p is of kind p // 4 and family p // 8."""
    products = [product for product in range(24) for _ in range(offers_a_product)]
    owners = [f"shop-{row % merchants}" for row in range(len(products))]
    return Catalogue.build(
        titles=[f"title {row} of {product}" for row, product in enumerate(products)],
        queries=[f"query {product}" for product in products],
        merchants=owners,
        products=products,
        kinds=[product // 4 for product in products],
        families=[product // 8 for product in products],
        config=CONFIG,
        options=options,
    )


def grade(query: str, title: str) -> int:
    """The slow twin: grades from the numbers in the texts."""
    asked, offered = int(query.split()[-1]), int(title.split()[-1])
    if asked == offered:
        return 0
    return 1 if asked // 4 == offered // 4 else 2 if asked // 8 == offered // 8 else 3


def test_every_pair_has_the_grade_of_its_texts() -> None:
    source = catalogue()
    rows = np.flatnonzero(source.owners == 0)
    examples = source.examples(rows, "shop-0", "train", 0)
    assert examples.labels.tolist() == [grade(*pair) for pair in zip(examples.texts, examples.pairs or (), strict=True)]
    assert len(set(zip(examples.texts, examples.pairs or (), strict=True))) == len(examples)


def test_an_offer_has_an_exact_a_substitute_and_one_other_pair() -> None:
    source = catalogue()
    rows = np.flatnonzero(source.owners == 0)
    examples = source.examples(rows, "shop-0", "train", 0)
    by_title = defaultdict(list)
    for title, label in zip(examples.pairs or (), examples.labels.tolist(), strict=True):
        by_title[title].append(label)
    assert len(by_title) == len(rows)
    assert all(sorted(labels) in ([0, 1, 2], [0, 1, 3]) for labels in by_title.values())
    assert {2, 3} <= set(examples.labels.tolist())


def test_merchants_differ_in_their_odds_and_keep_them_in_every_part() -> None:
    source = catalogue(offers_a_product=40, options=PairOptions(max_pairs=10_000))
    rows = np.arange(len(source.titles))

    def complements(merchant: str, part: str) -> float:
        labels = source.examples(rows, merchant, part, 0).labels
        return float((labels == 2).sum() / (labels >= 2).sum())

    odds = [complements(f"shop-{number}", "train") for number in range(12)]
    assert np.ptp(odds) > 0.2
    assert all(abs(complements(f"shop-{number}", "test") - odds[number]) < 0.1 for number in range(12))


def test_a_merchant_uses_nothing_but_its_own_rows() -> None:
    source = catalogue(merchants=3)
    rows = np.flatnonzero(source.owners == 1)[:9]
    examples = source.examples(rows, "shop-1", "train", 0)
    assert set(examples.pairs or ()) <= {source.titles[row] for row in rows}
    assert set(examples.texts) <= {source.queries[row] for row in rows}
    assert set(examples.merchants) == {"shop-1"}


def test_partners_are_drawn_evenly() -> None:
    source = catalogue(offers_a_product=1)
    rows = np.arange(24)
    rng = np.random.default_rng(0)
    drawn = source._partners(rows, np.tile([[1, 2, 3]], (24, 2000)), rng)
    for column, eligible in ((0, {1, 2, 3}), (1, {4, 5, 6, 7}), (2, set(range(8, 24)))):
        counts = Counter(drawn[0, column::3].tolist())
        assert set(counts) == eligible
        # Six standard deviations of a binomial count.
        share = 1 / len(eligible)
        assert all(abs(count - 2000 * share) < 6 * (2000 * share) ** 0.5 for count in counts.values())


def test_a_missing_grade_is_replaced_by_the_next() -> None:
    source = catalogue()
    one_product = np.flatnonzero(source.products == 5)
    assert set(source.examples(one_product, "shop-0", "train", 0).labels.tolist()) == {0}
    one_kind = np.flatnonzero(source.kinds == 1)
    assert set(source.examples(one_kind, "shop-0", "train", 0).labels.tolist()) == {0, 1}
    without_substitutes = np.flatnonzero(np.isin(source.products, [0, 4, 8]))
    assert set(source.examples(without_substitutes, "shop-0", "train", 0).labels.tolist()) == {0, 2, 3}


def test_no_row_gives_no_example() -> None:
    assert len(catalogue().examples(np.zeros(0, dtype=np.int64), "shop-0", "test", 0)) == 0


def test_pairs_are_capped_a_merchant() -> None:
    source = catalogue(options=PairOptions(max_pairs=20))
    assert len(source.examples(np.arange(len(source.titles)), "shop-0", "train", 0)) == 20


@pytest.mark.parametrize("size", [10, 300, 1728])
def test_the_proxy_is_distinct_pairs_up_to_all_there_are(size: int) -> None:
    source = catalogue()
    proxy = source.proxy(np.arange(72), size, 0)
    pairs = set(zip(proxy.texts, proxy.pairs or (), strict=True))
    assert len(pairs) == len(proxy) == size  # 24 queries x 72 titles = 1,728 pairs
    assert proxy.labels.tolist() == [grade(*pair) for pair in zip(proxy.texts, proxy.pairs or (), strict=True)]
    if size == 300:
        assert set(Counter(grade(*pair) for pair in pairs)) == {0, 1, 2, 3}


def test_a_proxy_beyond_all_pairs_is_all_of_them() -> None:
    proxy = catalogue().proxy(np.arange(72), 1729, 0)
    assert len(proxy) == len(set(zip(proxy.texts, proxy.pairs or (), strict=True))) == 1728
    assert len(catalogue().proxy(np.arange(0), 5, 0)) == 0


def test_the_ranking_has_all_exact_offers_and_no_title_twice() -> None:
    source = catalogue(options=PairOptions(ranking_queries=10, ranking_candidates=20))
    ranking = source.ranking(np.arange(72), "test", 0)
    assert ranking is not None
    pairs = list(zip(ranking.examples.texts, ranking.examples.pairs or (), strict=True))
    assert ranking.examples.labels.tolist() == [grade(*pair) for pair in pairs]
    assert Counter(ranking.queries.tolist()) == dict.fromkeys(range(10), 20)
    for query in range(10):
        own = [pair for pair, number in zip(pairs, ranking.queries, strict=True) if number == query]
        assert len({text for text, _ in own}) == 1
        assert len({title for _, title in own}) == 20
        counts = Counter(grade(*pair) for pair in own)
        assert counts[0] == 3
        assert min(counts[1], counts[2], counts[3]) > 2
    assert len({text for text, _ in pairs}) == 10


def test_exact_candidates_are_capped_at_ten_and_shuffled() -> None:
    ranking = catalogue(offers_a_product=14, options=PairOptions(ranking_queries=5)).ranking(
        np.arange(14 * 24), "test", 0
    )
    assert ranking is not None
    labels = ranking.examples.labels.reshape(5, 50)
    assert ((labels == 0).sum(axis=1) == 10).all()
    assert not (np.diff(labels, axis=1) >= 0).all(axis=1).any()


def test_products_with_one_offer_are_no_queries() -> None:
    assert catalogue(offers_a_product=1).ranking(np.arange(24), "test", 0) is None
    twice_the_same = replace(catalogue(offers_a_product=2), titles=tuple(f"of {row // 2}" for row in range(48)))
    assert twice_the_same.ranking(np.arange(48), "test", 0) is None


def test_no_offer_left_is_refused() -> None:
    with pytest.raises(DataError, match=r"no offer is left of 1"):
        Catalogue.build([""], ["query"], ["shop"], [0], [0], [0], CONFIG, PairOptions())
