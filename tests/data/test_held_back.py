"""Labels and merchants that are held back (``client_labels``, ``cold_merchants``), and the proxy set's account."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.describe import render
from fed_distill.data.examples import UNLABELED, Examples, FederatedData, MerchantData
from fed_distill.data.fingerprint import federated_fingerprint
from fed_distill.data.proxy_account import proxy_account
from fed_distill.data.tasks import RECOMMEND, RELEVANCE
from fed_distill.errors import ConfigError, DataError

OPTIONS = {"merchants": 12, "rows": 60, "products": 400}


def config(**changes: Any) -> DataConfig:
    return DataConfig.model_validate({"min_rows": 20, "proxy_size": 60, "options": OPTIONS, **changes})


def rows(examples: Examples, *, labels: bool = True) -> Counter[Any]:
    known = examples.labels.tolist() if labels else [UNLABELED] * len(examples)
    columns = (examples.texts, examples.pairs or (), known, examples.groups.tolist(), examples.merchants)
    return Counter(zip(*columns, strict=True))


@pytest.mark.parametrize("share", [0.5, 0.05, 0.0001])
def test_a_share_of_each_client_s_examples_is_labelled_and_nothing_else_changes(share: float) -> None:
    whole, data = load(config()), load(config(client_labels=share))
    for name, merchant in data.merchants.items():
        everything = whole.merchants[name]
        assert len(merchant.train) == max(1, round(share * len(everything.train)))
        assert not rows(merchant.train) - rows(everything.train)
        assert set(merchant.unlabeled.labels.tolist()) <= {UNLABELED}
        both = Examples.concatenate([merchant.train, merchant.unlabeled])
        assert rows(both, labels=False) == rows(everything.train, labels=False)
        assert rows(merchant.valid) == rows(everything.valid) and rows(merchant.test) == rows(everything.test)
        assert not len(everything.unlabeled) and everything.unlabeled.pairs == ()
    for part in ("public", "public_valid", "proxy", "valid", "test"):
        assert rows(getattr(data, part)) == rows(getattr(whole, part))
    labelled, unlabelled = data.account["examples"]["train"], data.account["examples"]["unlabeled"]
    assert labelled == sum(len(merchant.train) for merchant in data.merchants.values())
    assert labelled + unlabelled == whole.account["examples"]["train"]
    assert "unlabeled" not in whole.account["examples"] and "unlabeled" not in data.account["classes"]
    assert any(line.split()[:2] == ["unlabeled", f"{unlabelled:,}"] for line in render(data.account).splitlines())


def test_the_labelled_examples_are_drawn_by_the_seed_and_by_merchant() -> None:
    one, same = (load(config(client_labels=0.3)) for _ in range(2))
    assert all(rows(one.merchants[name].train) == rows(same.merchants[name].train) for name in one.merchants)
    fewer = load(config(client_labels=0.3, options={**OPTIONS, "max_pairs": 30}))
    assert all(len(merchant.train) == round(0.3 * 30) for merchant in fewer.merchants.values())


def test_unlabeled_examples_are_part_of_the_fingerprint_of_the_data() -> None:
    data = load(config(client_labels=0.3))
    name = next(iter(data.merchants))
    cut = replace(data.merchants[name], unlabeled=data.merchants[name].unlabeled.take([0]))
    changed = replace(data, merchants={**data.merchants, name: cut})
    assert federated_fingerprint(changed) != federated_fingerprint(data)


@pytest.mark.parametrize("proxy_from", ["public", "catalogue"])
@pytest.mark.parametrize("seed", range(3))
def test_cold_merchants_are_in_no_other_table(seed: int, proxy_from: str) -> None:
    whole = load(config(seed=seed, proxy_from=proxy_from))
    data = load(config(seed=seed, proxy_from=proxy_from, cold_merchants=0.3))
    assert data.cold is not None and data.cold.ranking is not None and whole.cold is None
    cold = set(data.cold.names)
    assert len(cold) == round(0.3 * len(whole.merchants))
    assert cold | set(data.merchants) == set(whole.merchants) and not cold & set(data.merchants)
    assert set(data.public.merchants) == set(whole.public.merchants)
    tables = [data.public, data.public_valid, data.proxy, data.valid, data.test]
    for view in (data.ranking_valid, data.ranking_test):
        assert view is not None
        tables.append(view.examples)
    assert not cold & {name for table in tables for name in table.merchants}
    assert rows(data.cold.test) == sum((rows(whole.merchants[name].test) for name in cold), Counter())
    assert set(data.cold.ranking.examples.merchants) <= cold
    assert set(data.cold.ranking.examples.groups.tolist()) <= set(whole.test.groups.tolist())
    trained = [data.public, data.proxy, *(merchant.train for merchant in data.merchants.values())]
    assert not set(data.cold.ranking.examples.groups.tolist()) & {g for part in trained for g in part.groups.tolist()}
    assert data.account["merchants"]["cold"] == len(cold)
    assert data.account["examples"]["cold"] == len(data.cold.test)
    assert "cold (held out whole)" in render(data.account)


def test_cold_merchants_are_of_all_sizes_and_drawn_by_the_seed() -> None:
    drawn = set()
    for seed in range(6):
        data = load(config(cold_merchants=0.5, seed=seed, options={**OPTIONS, "merchants": 24}))
        assert data.cold is not None
        drawn.add(data.cold.names)
    assert len(drawn) == 6


def test_a_quick_run_limits_them_too() -> None:
    data = load(config(cold_merchants=0.4, client_labels=0.2, max_examples=15, max_merchants=2))
    assert data.cold is not None and data.cold.ranking is not None
    assert len(data.cold.test) == 15
    assert len(data.merchants) == 2
    assert all(len(merchant.unlabeled) == 15 for merchant in data.merchants.values())
    whole = load(config(cold_merchants=0.4))
    assert whole.cold is not None and whole.cold.ranking is not None
    assert len(data.cold.ranking.queries) < len(whole.cold.ranking.queries)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"clients": "elsewhere", "client_labels": 0.5}, ConfigError, "data.client_labels is for simulations"),
        ({"clients": "elsewhere", "cold_merchants": 0.5}, ConfigError, "data.cold_merchants is for simulations"),
        ({"public_share": 0.99, "cold_merchants": 0.1}, DataError, "would leave no client, as there is only one"),
    ],
)
def test_what_cannot_be_held_back_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(config(**changes))


def table(pairs: list[tuple[str, str]]) -> Examples:
    zeros = np.zeros(len(pairs), dtype=np.int64)
    texts, seconds = zip(*pairs, strict=True)
    return Examples(texts, seconds, zeros, zeros, ("m",) * len(pairs))


def test_the_account_of_the_proxy_set_by_hand() -> None:
    nothing = table([("q", "p")]).take([])
    train = table([("red kettle", "Kettle XK-9"), ("blue tent", "big tent")])
    merchant = MerchantData("m", train, nothing, nothing, table([("green sofa", "big sofa")]).unlabeled())
    data = FederatedData(
        RELEVANCE,
        public=table([("red kettle", "a kettle")]),
        public_valid=nothing,
        proxy=table([("red kettle", "a kettle"), ("blue lamp", "big sofa"), ("blue lamp", "a kettle")]),
        merchants={"m": merchant},
        valid=nothing,
        test=nothing,
    )
    # Distinct texts of the proxy: red kettle, a kettle, blue lamp, big sofa; the first two are the server's.
    # Merchants' words: red kettle xk 9 blue tent big green sofa (a mark ends a word); all but the first two are new to
    # the server, and of these seven the proxy set has blue, big and sofa.
    words = {"red", "kettle", "xk", "9", "blue", "tent", "big", "green", "sofa"}
    new = words - {"red", "a", "kettle"}
    assert proxy_account(data) == {
        "texts": 4,
        "in_server_rows": 0.5,
        "merchant_words": len(words),
        "unknown_to_server": round(len(new) / len(words), 4),
        "covered": round(3 / len(new), 4),
    }
    assert set(proxy_account(replace(data, merchants={}))) == {"texts", "in_server_rows"}


def test_histories_count_as_their_titles() -> None:
    nothing = table([("q", "p")]).take([])
    data = FederatedData(
        RECOMMEND,
        public=table([("one ; two", "three")]),
        public_valid=nothing,
        proxy=table([("two ; one ; four", "three")]),
        merchants={},
        valid=nothing,
        test=nothing,
    )
    assert proxy_account(data) == {"texts": 4, "in_server_rows": 0.75}


def test_the_truth_must_fit_the_proxy_set() -> None:
    data = load(config())
    with pytest.raises(ValueError, match=r"proxy_truth has shape \(3,\) for 60 proxy examples"):
        replace(data, proxy_truth=np.zeros(3, dtype=np.int64))
