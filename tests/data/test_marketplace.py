from collections import Counter
from typing import Any

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.examples import FederatedData
from fed_distill.data.marketplace import Marketplace
from fed_distill.data.vocabulary import COLORS, DEPARTMENTS, HAN, SYLLABLES, UNITS
from fed_distill.data.world import make_world
from fed_distill.errors import ConfigError


def config(task: str = "relevance", proxy_size: int = 200, **options: Any) -> DataConfig:
    return DataConfig(task=task, proxy_size=proxy_size, options={"merchants": 8, "rows": 120, **options})


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


@pytest.fixture(scope="module")
def relevance() -> FederatedData:
    return load(config())


@pytest.fixture(scope="module")
def recommend() -> FederatedData:
    return load(config("recommend"))


def test_one_parameter_sets_the_number_of_merchants() -> None:
    for merchants in (10, 300):
        data = load(config(merchants=merchants, rows=40, proxy_size=50))
        assert data.account["merchants"]["all"] == merchants


def test_all_four_grades_occur_and_their_shares_differ(relevance: FederatedData) -> None:
    shares = np.stack(
        [np.bincount(shop.train.labels, minlength=4) / len(shop.train) for shop in relevance.merchants.values()]
    )
    assert (shares > 0).all()
    assert (np.ptp(shares, axis=0) > [0.05, 0.15, 0.15, 0.15]).all()


def test_no_product_is_asked_for_in_both_rankings_or_in_training(relevance: FederatedData) -> None:
    assert relevance.ranking_valid is not None and relevance.ranking_test is not None
    valid, test = (set(one.examples.groups.tolist()) for one in (relevance.ranking_valid, relevance.ranking_test))
    trained = set(relevance.public.groups.tolist()).union(
        *(shop.train.groups.tolist() for shop in relevance.merchants.values())
    )
    assert valid and test and not valid & test and not (valid | test) & trained


def texts_of(data: FederatedData) -> set[str]:
    return {title for shop in data.merchants.values() for title in shop.train.pairs or ()}


def test_each_data_seed_is_another_marketplace_unless_the_world_has_a_seed_of_its_own(
    relevance: FederatedData,
) -> None:
    first, own, fixed = (
        load(config(**options).model_copy(update={"seed": seed}))
        for options, seed in (({"world_seed": 0}, 0), ({}, 1), ({"world_seed": 0}, 1))
    )
    known = texts_of(relevance)
    assert texts_of(first) == known
    assert len(texts_of(own) & known) < 0.05 * len(known)
    assert len(texts_of(fixed) & known) > 0.4 * len(known)


def test_sizes_have_a_heavy_tail() -> None:
    world = make_world(2000, 0)
    offers = Marketplace(merchants=200, rows=50).offers(world)
    sizes = np.array(list(Counter(offers.merchants).values()))
    assert abs(sizes.mean() - 50) < 10
    assert sizes.mean() > 1.25 * np.median(sizes)
    assert sizes.max() > 5 * np.median(sizes)


def test_merchants_write_in_the_languages_asked_for() -> None:
    world = make_world(2000, 0)
    both = Marketplace(merchants=30, rows=40, size_spread=0.0).offers(world)
    by_merchant: dict[str, list[bool]] = {}
    for title, merchant in zip(both.titles, both.merchants, strict=True):
        by_merchant.setdefault(merchant, []).append(is_chinese(title))
    mostly_chinese = [np.mean(found) > 0.5 for found in by_merchant.values()]
    assert sum(mostly_chinese) == 10
    german_words = {
        word.casefold() for kinds in DEPARTMENTS.values() for (_, german, _), _, _ in kinds.values() for word in german
    }
    german = {
        merchant
        for title, merchant in zip(both.titles, both.merchants, strict=True)
        if {"ü", "ä", "ß"} & set(title.casefold()) and german_words & set(title.casefold().split())
    }
    assert len(german) >= 8
    english = Marketplace(merchants=10, rows=30, languages=("en",)).offers(world)
    assert not any(is_chinese(title) for title in english.titles + english.queries)


def test_merchants_differ_in_assortment_and_habits() -> None:
    world = make_world(1000, 0)
    offers = Marketplace(merchants=80, rows=100, size_spread=0.0).offers(world)  # so many that all habits are there
    departments = world.department_of[offers.products].reshape(80, 100)
    largest = [np.bincount(own).max() for own in departments]
    assert np.mean(largest) > 40  # an even assortment would have about 20
    assert len({np.bincount(own).argmax() for own in departments}) > 3
    titles = np.array(offers.titles, dtype=object).reshape(80, 100)
    upper = [np.mean([title == title.upper() and not is_chinese(title) for title in own]) for own in titles]
    lower = [np.mean([title == title.lower() for title in own]) for own in titles]
    assert max(lower) == 1.0
    assert min(lower) < 0.1
    assert max(upper) > 0.9


def test_products_are_distinct_and_of_a_department_of_their_brand() -> None:
    world = make_world(3000, 1)
    keys = set(zip(world.type_of, world.brand_of, world.line_of, world.number_of, world.size_of, strict=True))
    assert len(keys) == world.products == 3000
    for brand in range(len(world.brands)):
        assert len(set(world.department_of[world.brand_of == brand].tolist())) == 1
    assert len({brand.forms[0] for brand in world.brands}) == len(world.brands)


def test_the_vocabulary_is_complete() -> None:
    assert len(HAN) == len(set(HAN)) == len(SYLLABLES) == len(set(SYLLABLES))
    for kinds in DEPARTMENTS.values():
        assert len(kinds) == 4
        for words, unit, sizes in kinds.values():
            assert [len(synonyms) for synonyms in words] == [3, 3, 3]
            assert len(UNITS[unit]) == 4
            assert len(set(sizes)) == 3
    assert all(len(synonyms) == 3 for color in COLORS for synonyms in color)


def test_category_is_the_department() -> None:
    data = load(config("category", proxy_size=40))
    assert set(data.task.classes) == set(DEPARTMENTS)
    words = {
        name: {word.casefold() for kind in kinds.values() for language in kind[0] for word in language}
        for name, kinds in DEPARTMENTS.items()
    }
    hits = misses = 0
    for text, label in zip(data.test.texts, data.test.labels, strict=True):
        named = {name for name, known in words.items() if any(f" {word} " in f" {text.casefold()} " for word in known)}
        hits += data.task.classes[label] in named
        misses += bool(named) and data.task.classes[label] not in named
    assert hits > 0.6 * len(data.test)
    assert misses < 0.02 * len(data.test)


def test_histories_are_of_the_merchant_s_own_offers_and_part(recommend: FederatedData) -> None:
    for merchant in recommend.merchants.values():
        in_training = {title for text in merchant.train.texts for title in text.split(" ; ")} | set(
            merchant.train.pairs or ()
        )
        in_test = {title for text in merchant.test.texts for title in text.split(" ; ")} | set(
            merchant.test.pairs or ()
        )
        assert all(len(text.split(" ; ")) == 4 for text in merchant.train.texts)
        # A title may drop what tells two products apart; hardly any does.
        assert len(in_training & in_test) <= 0.1 * len(in_test)


def test_no_product_shown_in_the_test_was_shown_in_training(recommend: FederatedData) -> None:
    shown = {group for shop in recommend.merchants.values() for group in shop.train.groups.tolist()}
    assert not (shown | set(recommend.public.groups.tolist())) & set(recommend.test.groups.tolist())


def test_recommendations_can_be_learned_but_not_from_popularity_alone(recommend: FederatedData) -> None:
    """Brands shared with the history tell much; labels are noisy, and both classes are common everywhere."""
    for merchant in recommend.merchants.values():
        assert 0.25 < merchant.train.labels.mean() < 0.65
    train = [merchant.train for merchant in recommend.merchants.values()]
    overlap, labels = [], []
    for table in train:
        for history, product, label in zip(table.texts, table.pairs or (), table.labels.tolist(), strict=True):
            overlap.append(len(set(history.casefold().split()) & set(product.casefold().split())))
            labels.append(label)
    found = np.array(labels)
    many = np.array(overlap) >= np.median(overlap)
    assert found[many].mean() - found[~many].mean() > 0.15
    assert found[many].mean() < 0.95


def test_the_recommend_proxy_is_distinct(recommend: FederatedData) -> None:
    assert len(set(zip(recommend.proxy.texts, recommend.proxy.pairs or (), strict=True))) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merchants": 1}, "option merchants"),
        ({"languages": ["fr"]}, "option languages"),
        ({"languages": []}, "at least one language"),
        ({"merchant": 3}, "has no option 'merchant'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(config(**options))
