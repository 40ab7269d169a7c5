"""A proxy set from the public catalogue: which texts it has, which it never has, and how they are paired."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load, public_catalogue
from fed_distill.data.catalogue import Catalogue, PairOptions
from fed_distill.data.examples import UNLABELED, Examples, FederatedData
from fed_distill.data.fingerprint import federated_fingerprint
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.public_catalogue import neighbours
from fed_distill.data.public_part import PublicPart
from fed_distill.data.splits import federate, split_rows
from fed_distill.data.tasks import HISTORY_SEPARATOR, MATCHING, RECOMMEND, RELEVANCE, category_task
from fed_distill.errors import ConfigError, DataError

OPTIONS = {"merchants": 12, "rows": 60, "products": 400}
COLORS = ("red", "green", "blue", "black")
THINGS = ("kettle", "lamp", "sofa", "tent", "phone", "drill")


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"min_rows": 20, "proxy_size": 600, "proxy_from": "catalogue", "options": OPTIONS, **changes}
    )


def offers(config: DataConfig, shuffled: int | None = None) -> Catalogue:
    """96 products of 6 things (the kind) in 2 families at 8 shops; the texts have the product's number."""
    table = [(shop, product) for shop in range(8) for product in range(96) if (shop + product) % 2]
    if shuffled is not None:
        table = [table[at] for at in np.random.default_rng(shuffled).permutation(len(table))]
    return Catalogue.build(
        titles=[f"{THINGS[p % 6]} {COLORS[p % 4]} model{p} shop{shop}" for shop, p in table],
        queries=[f"{COLORS[p % 4]} {THINGS[p % 6]} model{p}" for _, p in table],
        merchants=[f"shop-{shop}" for shop, _ in table],
        products=[p for _, p in table],
        kinds=[p % 6 for _, p in table],
        families=[p % 2 for _, p in table],
        config=config,
        options=PairOptions(),
    )


def product(text: str) -> int:
    return int(next(word for word in text.split() if word.startswith("model")).removeprefix("model"))


def grade(query: str, title: str) -> int:
    one, other = product(query), product(title)
    return 0 if one == other else 1 if one % 6 == other % 6 else 2 if one % 2 == other % 2 else 3


def pairs(examples: Examples) -> list[tuple[str, str]]:
    return list(zip(examples.texts, examples.pairs or (), strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["random", "coverage", "uncertainty"])
def test_no_held_out_product_and_no_query_of_the_ranking_views(seed: int, choice: str) -> None:
    data = load(config(seed=seed, proxy_choice=choice))
    for view in (data.ranking_valid, data.ranking_test):
        assert view is not None
        assert not set(data.proxy.texts) & set(view.examples.texts)
        assert not set(data.proxy.pairs or ()) & set(view.examples.pairs or ())
    for part in (data.valid, data.test, data.public_valid):
        assert not set(data.proxy.pairs or ()) & set(part.pairs or ())
        assert not set(data.proxy.groups.tolist()) & set(part.groups.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_it_has_all_merchants_training_texts_and_no_others(seed: int) -> None:
    setting = config(seed=seed, proxy_size=100_000)
    source = offers(setting)
    split = split_rows(source, setting)
    data = federate(source, setting)
    training = np.flatnonzero(split.roles == 0)
    assert set(data.proxy.texts) == {source.queries[row] for row in training}
    assert set(data.proxy.pairs or ()) == {source.titles[row] for row in training}
    assert set(data.proxy.merchants) == set(source.names)
    assert (
        len(data.proxy) == len(set(pairs(data.proxy))) == len(set(data.proxy.texts)) * len(set(data.proxy.pairs or ()))
    )
    assert data.account["proxy_set"].startswith(f"{len(data.proxy):,} examples, all that the public texts of all")


def test_neither_grades_nor_codes_change_the_texts() -> None:
    """The codes are permuted where they do not decide the split: kinds and families, and products among the groups."""
    setting = config()
    source = offers(setting)
    rng = np.random.default_rng(0)
    changed = replace(
        source,
        products=rng.permutation(source.products),
        kinds=rng.permutation(source.kinds),
        families=rng.permutation(source.families),
    )
    one, other = federate(source, setting), federate(changed, setting)
    assert pairs(one.proxy) == pairs(other.proxy)
    assert one.proxy_truth is not None and other.proxy_truth is not None
    assert not np.array_equal(one.proxy_truth, other.proxy_truth)


def test_nor_do_labels_of_rows() -> None:
    setting = config(task="relevance", dataset="custom", min_rows=4)
    source = judged(setting, public_texts=True)
    changed = replace(source, labels=np.random.default_rng(0).permutation(source.labels))
    assert pairs(federate(source, setting).proxy) == pairs(federate(changed, setting).proxy)


def judged(setting: DataConfig, **more: Any) -> LabeledRows:
    table = [(shop, query, grade) for shop in range(6) for query in range(40) for grade in range(4)]
    return LabeledRows.build(
        RELEVANCE,
        texts=[f"query {query}" for _, query, _ in table],
        pairs=[f"offer {query} of grade {grade} at {shop}" for shop, query, grade in table],
        labels=[grade for _, _, grade in table],
        merchants=[f"shop-{shop}" for shop, _, _ in table],
        config=setting,
        **more,
    )


def test_it_depends_on_the_seed_and_not_on_the_order_of_the_rows() -> None:
    setting = config()
    split_free = {"valid_share": 0.0, "test_share": 0.0}  # the split numbers groups by their first row
    setting = setting.model_copy(update=split_free)
    one, same, shuffled = (federate(offers(setting, order), setting).proxy for order in (None, None, 3))
    assert pairs(one) == pairs(same) == pairs(shuffled)
    again = setting.model_copy(update={"seed": 1})
    assert pairs(federate(offers(again), again).proxy) != pairs(one)


def test_the_truth_is_the_grade_of_the_texts_and_the_examples_do_not_have_it() -> None:
    setting = config()
    for change in ({}, {"proxy_choice": "coverage"}, {"proxy_from": "public"}):
        changed = setting.model_copy(update=change)
        data = federate(offers(changed), changed)
        assert data.proxy_truth is not None
        assert data.proxy_truth.tolist() == [grade(*pair) for pair in pairs(data.proxy)]
        assert set(data.proxy.labels.tolist()) == {UNLABELED}
        blind = replace(data, proxy_truth=None)
        assert federated_fingerprint(blind) == federated_fingerprint(data)
        assert PublicPart(blind.task, blind.proxy).fingerprint == PublicPart(data.task, data.proxy).fingerprint


def test_the_truth_of_judged_rows_is_known_where_they_were_judged() -> None:
    setting = config(min_rows=4, proxy_size=100_000)
    data = federate(judged(setting, public_texts=True), setting)
    assert data.proxy_truth is not None
    for (query, offer), truth in zip(pairs(data.proxy), data.proxy_truth.tolist(), strict=True):
        _, number, _, _, known, _, _ = offer.split()
        assert truth == (int(known) if number == query.split()[1] else UNLABELED)
    assert (data.proxy_truth == UNLABELED).any() and (data.proxy_truth != UNLABELED).any()


def test_the_truth_of_contradicting_rows_is_the_most_frequent_label() -> None:
    rows = LabeledRows.build(
        category_task("ab"),
        ["x", "x", "x", "y", "y"],
        [0, 1, 1, 1, 0],
        config(),
        merchants=["1", "2", "3", "1", "2"],
    )
    asked = np.array([0, 3, -1])
    assert rows.true_classes(np.arange(5), asked, None).tolist() == [1, 0, UNLABELED]
    assert rows.true_classes(np.arange(2), asked, None).tolist() == [0, UNLABELED, UNLABELED]
    assert rows.true_classes(np.zeros(0, dtype=np.int64), asked, None).tolist() == [UNLABELED] * 3


def test_matching_has_the_truth_of_its_two_classes() -> None:
    setting = config()
    data = federate(replace(offers(setting), task=MATCHING), setting)
    assert data.proxy_truth is not None
    assert data.proxy_truth.tolist() == [int(product(q) == product(t)) for q, t in pairs(data.proxy)]
    assert 0.1 < data.proxy_truth.mean() < 0.5


def test_every_query_has_several_candidates_of_every_grade() -> None:
    setting = config(proxy_size=200)
    data = federate(offers(setting), setting)
    assert len(data.proxy) == 200
    candidates = Counter(data.proxy.texts)
    assert min(candidates.values()) > 1
    assert len(candidates) == 50  # four each
    assert data.proxy_truth is not None
    assert (np.bincount(data.proxy_truth, minlength=4) > 10).all()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_size_is_exact_if_there_are_so_many(size: int) -> None:
    setting = config(proxy_size=size)
    assert len(set(pairs(federate(offers(setting), setting).proxy))) == size


def test_the_share_of_neighbours_decides_how_many_match() -> None:
    exact = []
    for share in (0.0, 0.5, 0.99):
        setting = config(proxy_size=250, proxy_neighbours=share)
        data = federate(offers(setting), setting)
        assert data.proxy_truth is not None
        exact.append(float((data.proxy_truth == 0).mean()))
    assert exact[0] < 0.1 < exact[1] < exact[2]


def slow_similarity(queries: tuple[str, ...], titles: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """TF-IDF cosine of words and boundary-marked character 3- and 4-grams, text by text."""

    def bag(text: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for word in text.lower().split():
            found[f"word {word}"] += 1
            for size in (3, 4):
                marked = f"<{word}>"
                found.update(marked[at : at + size] for at in range(len(marked) - size + 1))
        return found

    bags = [bag(title) for title in titles]
    documents = Counter(feature for one in bags for feature in one)

    def vector(found: Counter[str]) -> dict[str, float]:
        raw = {
            feature: (1 + math.log(count)) * (math.log((1 + len(titles)) / (1 + documents[feature])) + 1)
            for feature, count in found.items()
        }
        length = math.sqrt(sum(value**2 for value in raw.values()))
        return {feature: value / length for feature, value in raw.items()}

    vectors = [vector(one) for one in bags]
    asked = [vector(bag(query)) for query in queries]
    return np.array([[sum(v * t.get(f, 0.0) for f, v in q.items()) for t in vectors] for q in asked])


def test_neighbours_are_those_of_a_cosine_computed_text_by_text() -> None:
    source = offers(config())
    queries, titles = tuple(sorted(set(source.queries)))[:40], tuple(sorted(set(source.titles)))
    similarity = slow_similarity(queries, titles)
    found = neighbours(queries, titles, 9)
    best = -np.sort(-similarity, axis=1)[:, :9]
    np.testing.assert_allclose(np.take_along_axis(similarity, found, axis=1), best, atol=1e-9)
    assert all(len(set(row)) == 9 for row in found.tolist())
    assert neighbours(queries[:1], titles[:3], 9).shape == (1, 3)


def test_single_texts_are_each_once_and_of_training_rows() -> None:
    data = load(config(task="category", proxy_size=100_000))
    assert len(data.proxy) == len(set(data.proxy.texts))
    trained = set(data.public.texts).union(*(merchant.train.texts for merchant in data.merchants.values()))
    held_out = {text for part in (data.valid, data.test, data.public_valid) for text in part.texts}
    assert set(data.proxy.texts) <= trained and not set(data.proxy.texts) & held_out
    assert len(trained - set(data.proxy.texts)) <= len(trained & held_out) + 20  # the public merchants' test rows
    label = {
        text: int(known)
        for part in (data.public, *(merchant.train for merchant in data.merchants.values()))
        for text, known in zip(part.texts, part.labels, strict=True)
    }
    assert data.proxy_truth is not None
    assert data.proxy_truth.tolist() == [label[text] for text in data.proxy.texts]


def test_histories_are_imitated_with_public_titles() -> None:
    data = load(config(task="recommend"))
    titles = {title for merchant in data.merchants.values() for title in merchant.train.pairs or ()}
    titles |= set(data.public.pairs or ())
    held_out = {title for part in (data.valid, data.test, data.public_valid) for title in part.pairs or ()}
    own = {text for merchant in data.merchants.values() for text in merchant.train.texts} | set(data.public.texts)
    assert len(set(pairs(data.proxy))) == len(data.proxy) == 600
    assert not own & set(data.proxy.texts)
    clicks = [text.split(HISTORY_SEPARATOR) for text in data.proxy.texts]
    assert {len(history) for history in clicks} == {4}
    assert np.mean([len(set(history)) == 4 for history in clicks]) > 0.9, "a title is no neighbour of itself"
    assert not {title for history in clicks for title in history} & held_out
    assert not set(data.proxy.pairs or ()) & held_out
    assert max(Counter(data.proxy.texts).values()) > 1
    assert data.proxy_truth is None


def test_nothing_more_is_ranked_for_histories_than_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than are missing are drawn at a time, so that there can be too many."""
    asked: list[int] = []
    monkeypatch.setattr(
        public_catalogue, "neighbours", lambda queries, *rest: asked.append(len(queries)) or neighbours(queries, *rest)
    )
    assert len(load(config(task="recommend", proxy_size=601)).proxy) == 601
    assert asked and all(asked)


def test_histories_of_a_single_title_end() -> None:
    setting = config(min_rows=1, valid_share=0.0, test_share=0.0, public_share=0.5, proxy_size=50)
    source = LabeledRows.build(
        RECOMMEND, ["h", "i", "h", "i"], [0, 1, 1, 0], setting, ["p"] * 4, ["1", "1", "2", "2"], public_texts=True
    )
    assert pairs(federate(source, setting).proxy) == [("p ; p ; p ; p", "p")]


def test_a_domain_s_catalogue_has_the_texts_of_that_domain() -> None:
    data = load(config(proxy_domains=["phones"]))
    source = load(config(proxy_from="public", proxy_domains=["phones"], proxy_size=100_000))
    assert set(source.proxy.pairs or ()) & set(data.proxy.pairs or ())
    trained = {*data.public.groups.tolist()}.union(*(m.train.groups.tolist() for m in data.merchants.values()))
    assert not set(data.proxy.groups.tolist()) & trained
    assert set(data.proxy.merchants) & set(data.merchants)


def undeclared(setting: DataConfig) -> FederatedData:
    return federate(judged(setting), setting)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy_dataset": "marketplace"}, r"data.proxy_dataset and data.proxy_from = 'catalogue' exclude each other"),
        ({"clients": "elsewhere"}, r"requires the server's own catalogue file.*data.options.catalogue"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(config(**changes))


def test_texts_that_nobody_declared_public_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"LabeledRows.build\(..., public_texts=True\)"):
        undeclared(config(min_rows=4))


def test_a_source_without_public_texts_is_refused() -> None:
    class Other:
        """A source with only what `Source` requires."""

        def __init__(self, source: LabeledRows) -> None:
            for name in ("task", "names", "owners", "groups", "domains", "account", "examples", "proxy", "ranking"):
                setattr(self, name, getattr(source, name))

    setting = config(min_rows=4)
    other: Any = Other(judged(setting))
    with pytest.raises(ConfigError, match=r"does not say which of its texts are public"):
        federate(other, setting)


def test_a_catalogue_of_held_out_texts_alone_is_empty() -> None:
    setting = config(min_rows=2, public_share=0.5, valid_share=0.0, test_share=0.5)
    table = [(shop, row) for shop in range(4) for row in range(8)]
    source = LabeledRows.build(
        category_task("ab"),
        [f"text {row % 4}" for _, row in table],  # every text is in two groups
        [row % 2 for _, row in table],
        setting,
        merchants=[f"shop-{shop}" for shop, _ in table],
        groups=[(shop, row) for shop, row in table],
        public_texts=True,
    )
    with pytest.raises(DataError, match=r"the proxy set is empty, as the public texts of all merchants' training"):
        federate(source, setting)
