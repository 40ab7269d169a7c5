"""Ratios of scores, and the cases in which they are undefined, by hand."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score, ndcg_score

from fed_distill.data.examples import Examples, Ranking, Task
from fed_distill.evaluation.shares import chance_scores, gap_closed, retention

GRADES = Task("relevance", ("irrelevant", "complement", "substitute", "exact"), True, "exact", (0.0, 0.01, 0.1, 1.0))


def level(value, queries=100):
    """One training seed; queries differ, but rows differ by the same at each of them."""
    return [value + np.linspace(-0.1, 0.1, queries)[None, :]]


def controls(server, local, pooled):
    return {"server": level(server), "local": level(local), "pooled": level(pooled)}


def test_the_gap_is_counted_from_the_better_of_server_and_local():
    assert gap_closed(level(0.96), controls(0.95, 0.94, 0.97)).value == pytest.approx(0.5)
    assert gap_closed(level(0.96), controls(0.90, 0.95, 0.97)).value == pytest.approx(0.5)
    assert gap_closed(level(0.94), controls(0.95, 0.95, 0.97)).value == pytest.approx(-0.5)


def test_the_gap_is_undefined_where_pooling_is_worth_nothing():
    found = gap_closed(level(0.96), controls(0.95, 0.94, 0.95))
    assert found.value is None
    assert found.reason == "pooling all data (0.9500) is no better than the server alone (0.9500)"
    assert "each merchant alone" in gap_closed(level(0.96), controls(0.90, 0.94, 0.93)).reason


def test_the_gap_is_undefined_where_pooling_is_not_clear_of_noise():
    """Differences ±0.1 over 100 queries: half-width 0.0199, so that 0.03 is significant and not yet clear."""
    noise = np.resize([-0.1, 0.1], 100)[None, :]
    rows = controls(0.90, 0.80, 0.93)
    rows["pooled"] = [rows["pooled"][0] + noise]
    found = gap_closed(level(0.95), rows)
    assert found.value is None
    assert "is not clearly better than the server alone (0.9000): the difference is 0.0300 ± 0.0199" in found.reason
    rows["pooled"] = [rows["pooled"][0] + 0.02]
    assert gap_closed(level(0.95), rows).value == pytest.approx(1.0)


def test_the_gap_without_a_control_says_what_it_needs():
    found = gap_closed(level(0.96), {"server": level(0.95), "pooled": level(0.97)})
    assert found.value is None
    assert "needs the student and the controls server, local and pooled" in found.reason


def test_retention_is_a_share_of_the_teacher_above_chance():
    assert retention(level(0.9), 0.95, 0.5).value == pytest.approx(0.9 / 0.95)
    assert retention(level(0.9), 0.5, 0.5).reason == "the teacher (0.5000) is no better than chance (0.5000)"
    assert retention(level(0.9), 0.0, None).value is None
    assert retention(None, 0.9, None).value is None


def test_chance_is_the_mean_over_all_orders():
    labels = np.array([3, 2, 0, 0])
    pairs = Examples(("q",) * 4, tuple("abcd"), labels, np.arange(4), ("m",) * 4)
    found = chance_scores([3, 3, 0, 2], Ranking(pairs, np.zeros(4, dtype=np.int64)), GRADES)
    gains = np.array(GRADES.gains)[labels]
    orders = [ndcg_score([gains], [order], k=10) for order in itertools.permutations(range(4))]
    assert found["ndcg@10"] == pytest.approx(np.mean(orders))
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx(f1_score([3, 3, 0, 2], [3] * 4, average="macro", zero_division=0))
