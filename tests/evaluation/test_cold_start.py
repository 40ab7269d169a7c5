"""Metrics of cold and warm products and customers, with expected values by hand."""

from math import log2

import numpy as np
import pytest

from fed_distill.data.examples import Examples, FederatedData, MerchantData, Ranking
from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.evaluation import cold_start
from fed_distill.evaluation.cold_start import as_table, by_kind, rows_by_kind


def table(*rows: tuple[int, str, str, int], merchant: str = "shop") -> Examples:
    """Examples of (customer, history, candidate, label); label 0 is bought."""
    groups, texts, pairs, labels = zip(*rows, strict=True)
    return Examples(texts, pairs, np.array(labels), np.array(groups), (merchant,) * len(rows))


def data(view: Examples, queries: list[int]) -> FederatedData:
    public = table((7, "soap", "brush", 0), merchant="server")
    train = table((1, "tea ; milk", "bread", 0), (1, "tea ; milk", "jam", 1))
    return FederatedData(
        task=NEXT_BASKET,
        public=public,
        public_valid=public,
        proxy=public.unlabeled(),
        merchants={"shop": MerchantData("shop", train, train, train)},
        valid=train,
        test=train,
        ranking_test=Ranking(view, np.array(queries)),
    )


@pytest.fixture(autouse=True)
def one_query_is_enough(monkeypatch):
    monkeypatch.setattr(cold_start, "ENOUGH", 1)


VIEW = table(
    (1, "tea", "milk", 0),  # in a training history
    (1, "tea", "jam", 0),  # a candidate of training that was not bought: cold
    (1, "tea", "soap", 1),
    (2, "salt", "bread", 0),  # bought in training
    (2, "salt", "brush", 1),
)
QUERIES = [0, 0, 0, 1, 1]
BOUGHT = [0.9, 0.2, 0.5, 0.1, 0.8]
"""Predicted probability of each candidate."""


def test_cold_and_warm_answers_are_ranked_among_the_same_candidates():
    found = data(VIEW, QUERIES)
    rows = rows_by_kind(found)
    assert {kind: places.tolist() for kind, places in rows.items()} == {
        "cold products": [1, 2],
        "warm products": [0, 2, 3, 4],
        "cold customers": [3, 4],
        "warm customers": [0, 1, 2],
    }
    bought = np.array(BOUGHT)
    measured = as_table(by_kind(bought, found.ranking_test, rows, NEXT_BASKET))
    second = 1 / log2(3)  # the answer is in second place
    assert measured["cold products"] == {"ndcg@10": pytest.approx(second), "recall@20": 1.0, "queries": 1}
    assert measured["warm products"]["ndcg@10"] == pytest.approx((1.0 + second) / 2)
    assert measured["warm products"]["queries"] == 2
    assert measured["cold customers"]["ndcg@10"] == pytest.approx(second)
    assert measured["warm customers"]["ndcg@10"] == pytest.approx((1 + 0.5) / (1 + second))  # first and third of three


def test_kinds_with_few_queries_are_left_out_and_warm_ones_with_their_cold_ones(monkeypatch):
    monkeypatch.setattr(cold_start, "ENOUGH", 2)
    assert rows_by_kind(data(VIEW, QUERIES)) == {}
    more = Examples.concatenate([VIEW, table((1, "tea", "salt", 0), (1, "tea", "soap", 1))])
    assert list(rows_by_kind(data(more, [*QUERIES, 2, 2]))) == ["cold products", "warm products"]


def test_other_tasks_have_none(task):
    found = data(VIEW, QUERIES)
    other = FederatedData(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, "task": task})
    assert rows_by_kind(other) == {}
    assert as_table({"ndcg@10": 0.5}) == {}
