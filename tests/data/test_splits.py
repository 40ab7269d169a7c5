import logging

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data.describe import render
from fed_distill.data.examples import FederatedData
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.proxy import proxy_set
from fed_distill.data.splits import federate, split_rows
from fed_distill.data.tasks import RELEVANCE, category_task
from fed_distill.errors import DataError

CONFIG = DataConfig(task="category", min_rows=10, proxy_size=20, public_share=0.25)
TASK = category_task(["no", "yes", "yes"])


def rows(
    sizes: dict[str, int], config: DataConfig = CONFIG, products: int = 40, label: int | None = None
) -> LabeledRows:
    """A source in which product p of shop s is called ``p p at s`` and is labelled ``p % 2``."""
    table = [(shop, row % products, row) for shop, size in sizes.items() for row in range(size)]
    return LabeledRows.build(
        TASK,
        texts=[f"item {product} number {row} at {shop}" for shop, product, row in table],
        labels=[product % 2 if label is None else label for _, product, _ in table],
        merchants=[shop for shop, _, _ in table],
        groups=[product for _, product, _ in table],
        config=config,
    )


EVEN = {f"shop-{number}": 60 for number in range(1, 9)}


def every_table(data: FederatedData) -> dict[str, set[int]]:
    tables = {
        "public": data.public,
        "public_valid": data.public_valid,
        "proxy": data.proxy,
        "valid": data.valid,
        "test": data.test,
    }
    for name, merchant in data.merchants.items():
        tables |= {f"{name} train": merchant.train, f"{name} valid": merchant.valid, f"{name} test": merchant.test}
    return {name: set(table.groups.tolist()) for name, table in tables.items()}


def test_no_group_is_on_two_sides_anywhere() -> None:
    groups = every_table(federate(rows(EVEN), CONFIG))
    train = set.union(
        *(found for name, found in groups.items() if name.endswith("train")), groups["public"], groups["proxy"]
    )
    valid = set.union(*(found for name, found in groups.items() if name.endswith("valid")))
    test = set.union(*(found for name, found in groups.items() if name.endswith("test")))
    assert not train & valid
    assert not train & test
    assert not valid & test
    assert (len(train), len(valid), len(test)) == (28, 4, 8)


def test_a_ranking_asks_for_its_own_part_s_queries_alone() -> None:
    config = CONFIG.model_copy(update={"task": "relevance"})
    table = [(shop, query, grade) for shop in EVEN for query in range(40) for grade in (0, 3)]
    source = LabeledRows.build(
        RELEVANCE,
        texts=[f"query {query}" for _, query, _ in table],
        pairs=[f"offer {query} of grade {grade} at {shop}" for shop, query, grade in table],
        labels=[grade for _, _, grade in table],
        merchants=[shop for shop, _, _ in table],
        config=config,
    )
    data = federate(source, config)
    assert data.ranking_valid is not None and data.ranking_test is not None
    valid, test = set(data.ranking_valid.examples.texts), set(data.ranking_test.examples.texts)
    assert (valid, test) == (set(data.valid.texts), set(data.test.texts))
    assert (len(valid), len(test)) == (4, 8)
    trained = set(data.public.texts).union(*(merchant.train.texts for merchant in data.merchants.values()))
    assert not valid & test and not (valid | test) & trained


def test_public_merchants_are_no_clients_and_test_is_the_clients_pooled() -> None:
    data = federate(rows(EVEN), CONFIG)
    public = set(data.public.merchants)
    assert len(public) == 2
    assert public | set(data.merchants) == set(EVEN)
    assert not public & set(data.merchants)
    assert set(data.public_valid.merchants) == set(data.proxy.merchants) == public
    assert data.test.texts == tuple(text for merchant in data.merchants.values() for text in merchant.test.texts)
    assert data.valid.texts == tuple(text for merchant in data.merchants.values() for text in merchant.valid.texts)


def test_small_merchants_are_public() -> None:
    config = CONFIG.model_copy(update={"min_rows": 1})
    data = federate(rows({**EVEN, "kiosk": 1}, config), config)
    assert "kiosk" not in data.merchants
    assert data.account["merchants"] == {"all": 9, "public": 3, "too_small": 1, "clients": 6, "single_class": []}


def test_public_merchants_are_drawn_from_all_sizes() -> None:
    sizes = {f"shop-{number}": 20 * number for number in range(1, 13)}
    public_rows = set()
    for seed in range(8):
        config = CONFIG.model_copy(update={"seed": seed, "public_share": 0.5})
        split = split_rows(rows(sizes, config), config)
        assert len(split.public) == 6
        # One of each pair of neighbours in size.
        assert [index // 2 for index in split.public] == [0, 1, 2, 3, 4, 5]
        public_rows.add(split.public)
    assert len(public_rows) > 4


def test_the_proxy_has_no_labels_and_no_example_twice() -> None:
    proxy = federate(rows(EVEN), CONFIG).proxy
    assert len(proxy) == len(set(proxy.texts)) == 20
    assert set(proxy.labels.tolist()) == {-1}


@pytest.mark.parametrize("choice", ["random", "coverage", "uncertainty"])
def test_a_proxy_set_of_a_small_table_is_all_that_there_is_and_the_account_tells(choice: str) -> None:
    config = CONFIG.model_copy(update={"proxy_size": 5000, "proxy_choice": choice})
    source = rows(EVEN, config)
    split = split_rows(source, config)
    there = sum(
        1 for owner, part in zip(source.owners, split.roles, strict=True) if owner in split.public and part == 0
    )
    data = federate(source, config)
    assert len(data.proxy) == len(set(data.proxy.texts)) == data.account["examples"]["proxy"] == there
    assert data.account["proxy_set"].startswith(f"{there} examples, ")
    assert "data.proxy_size = 5,000" in data.account["proxy_set"] and "public_share" in data.account["proxy_set"]
    assert f"The proxy set has {there} examples" in render(data.account)
    full = federate(source, config.model_copy(update={"proxy_size": there}))
    assert len(full.proxy) == there and "proxy_set" not in full.account


def test_no_proxy_set_at_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"proxy set is empty.*data\.public_share"):
        nothing = np.zeros(0, dtype=np.int64)
        proxy_set(rows(EVEN), nothing, CONFIG, None, nothing)


def test_no_client_left_says_which_key_to_lower() -> None:
    config = CONFIG.model_copy(update={"min_rows": 100})
    with pytest.raises(DataError, match=r"8 merchants have \d+ to \d+ rows.*data.min_rows = 100; lower data.min_rows"):
        federate(rows(EVEN, config), config)


def test_a_lone_merchant_is_no_federation() -> None:
    with pytest.raises(DataError, match="shop-1 is the only merchant"):
        federate(rows({"shop-1": 60}), CONFIG)


def test_no_public_merchant_is_refused() -> None:
    config = CONFIG.model_copy(update={"public_share": 0.0})
    with pytest.raises(DataError, match="no merchant is public"):
        federate(rows(EVEN, config), config)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="2 groups are too few"):
        federate(rows(EVEN, products=2), CONFIG)


def test_one_class_overall_is_refused() -> None:
    with pytest.raises(DataError, match=r"one class \(yes\)"):
        federate(rows(EVEN, label=1), CONFIG)


def test_a_single_class_merchant_is_kept_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    shops = [*EVEN, "mono"]
    table = [(shop, product) for shop in shops for product in range(40)]
    source = LabeledRows.build(
        TASK,
        texts=[f"item {product} at {shop}" for shop, product in table],
        labels=[1 if shop == "mono" else product % 2 for shop, product in table],
        merchants=[shop for shop, _ in table],
        groups=[product for _, product in table],
        config=CONFIG,
    )
    seed = next(seed for seed in range(50) if "mono" in clients(source, CONFIG.model_copy(update={"seed": seed})))
    with caplog.at_level(logging.WARNING, logger="fed_distill.data"):
        data = federate(source, CONFIG.model_copy(update={"seed": seed}))
    assert data.account["merchants"]["single_class"] == ["mono"]
    assert "mono" in data.merchants
    assert "1 merchants have one class only" in caplog.text
    assert "mono" not in caplog.text  # a private run's log names nobody's classes


def clients(source: LabeledRows, config: DataConfig) -> set[str]:
    return {source.names[index] for index in split_rows(source, config).clients}


def test_the_account_counts_what_is_there() -> None:
    data = federate(rows(EVEN), CONFIG)
    account = data.account
    assert account["examples"] == {
        "public": len(data.public),
        "public_valid": len(data.public_valid),
        "proxy": 20,
        "train": sum(len(merchant.train) for merchant in data.merchants.values()),
        "valid": len(data.valid),
        "test": len(data.test),
    }
    everything = sum(sum(parts.values()) for parts in account["rows"].values())
    assert everything == account["cleaning"]["rows_kept"] == 480
    assert account["classes"]["test"] == {
        "no": int((data.test.labels == 0).sum()),
        "yes": int((data.test.labels == 1).sum()),
    }
    assert account["client_rows"] == {name: len(merchant.train) for name, merchant in data.merchants.items()}


def test_another_seed_is_another_split() -> None:
    source = rows(EVEN)
    first, same, other = (split_rows(source, CONFIG.model_copy(update={"seed": seed})) for seed in (0, 0, 1))
    assert np.array_equal(first.roles, same.roles)
    assert first.public == same.public
    assert not np.array_equal(first.roles, other.roles)


@pytest.mark.parametrize("share", [0.5, 0.25, 0.001])
def test_the_server_has_the_labels_of_a_share_of_the_public_examples_and_nothing_else_changes(share: float) -> None:
    everything = federate(rows(EVEN), CONFIG)
    data = federate(rows(EVEN), CONFIG.model_copy(update={"public_labels": share}))
    for part in ("public", "public_valid"):
        known, whole = getattr(data, part), getattr(everything, part)
        assert len(known) == max(1, round(share * len(whole)))
        assert set(zip(known.texts, known.labels, strict=True)) <= set(zip(whole.texts, whole.labels, strict=True))
        assert list(known.texts) == [text for text in whole.texts if text in set(known.texts)]
    assert data.proxy.texts == everything.proxy.texts
    assert data.test.texts == everything.test.texts
    assert data.valid.texts == everything.valid.texts
    for name, merchant in data.merchants.items():
        assert merchant.train.texts == everything.merchants[name].train.texts
        assert np.array_equal(merchant.train.labels, everything.merchants[name].train.labels)
