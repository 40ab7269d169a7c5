"""A student's scores by unit of the test set against its metrics, and together with BM25 against a slow twin."""

import math

import numpy as np
import pytest

from fed_distill.config.data import DataConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.data import load
from fed_distill.evaluation.bm25_weight import WEIGHTS
from fed_distill.evaluation.campaigns import BLOCKS
from fed_distill.evaluation.lexical import bm25
from fed_distill.models import build_student, predict


@pytest.mark.parametrize(
    ("task", "headline"),
    [("faq", "macro_f1"), ("category", "macro_f1"), ("relevance", "ndcg@10"), ("marketing-effect", "qini")],
)
def test_the_mean_over_the_units_of_the_test_set_is_the_headline_metric(task, headline):
    data = load(DataConfig(dataset="marketplace", task=task, options={"merchants": 4, "rows": 60}))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    metrics, by_unit = Evaluator(data).test_by_unit(student)
    assert metrics[headline] == pytest.approx(np.mean(by_unit))
    groups = len(np.unique(data.test.groups))
    units = {"macro_f1": groups, "ndcg@10": metrics.get("queries"), "qini": min(groups, BLOCKS)}
    assert len(by_unit) == units[headline]


MARKETPLACE = {"merchants": 4, "rows": 60}


def scored(task):
    data = load(DataConfig(dataset="marketplace", task=task, options=MARKETPLACE, cold_merchants=0.4))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    return data, student, Evaluator(data).scored(student)


@pytest.mark.parametrize("task", ["faq", "relevance", "marketing-effect"])
def test_all_scores_together_are_those_of_each_set(task):
    data, student, found = scored(task)
    alone = Evaluator(data)
    assert (found.metrics, found.by_unit) == alone.test_by_unit(student)
    assert found.validation == alone.validation(student)
    assert found.cold == alone.cold(student) is not None
    assert (found.with_bm25 is None) == (task != "relevance")


def _slow_ndcg(data, ranked, gains, words, weight):
    """Mean nDCG@10 of log-odds plus weight times BM25, query by query."""
    truth = [data.task.gains[label] for label in ranked.examples.labels]
    score = [math.log(gain / (1 - gain)) + weight * word for gain, word in zip(gains, words, strict=True)]
    values = []
    for query in sorted(set(ranked.queries)):
        rows = [row for row, own in enumerate(ranked.queries) if own == query]
        ideal = sorted((truth[row] for row in rows), reverse=True)
        order = sorted(rows, key=lambda row: (-score[row], truth[row]))
        dcg, best = (
            sum(gain / math.log2(place + 2) for place, gain in enumerate(gained[:10]))
            for gained in ([truth[row] for row in order], ideal)
        )
        if best:
            values.append(dcg / best)
    return sum(values) / len(values)


def test_the_sum_with_bm25_has_the_weight_that_is_best_in_validation():
    data, student, found = scored("relevance")
    words = bm25([*data.public.pairs, *data.proxy.pairs])

    def slow(ranked, weight):
        examples = ranked.examples
        probabilities = predict(student, student.encode(examples.texts, examples.pairs)).numpy()
        gains = probabilities.astype(np.float64) @ np.array(data.task.gains)
        return _slow_ndcg(data, ranked, gains, words(examples), weight)

    in_validation = {weight: slow(data.ranking_valid, weight) for weight in WEIGHTS}
    weight = max(WEIGHTS, key=in_validation.__getitem__)
    assert weight > 0.0  # an untrained student
    assert found.with_bm25["weight"] == weight
    assert found.with_bm25["ndcg@10"] == pytest.approx(slow(data.ranking_test, weight))
    assert found.with_bm25["ndcg@10"] > found.metrics["ndcg@10"]
    assert found.with_bm25["queries"] == found.metrics["queries"]


def test_no_words_in_common_leave_the_student_alone(monkeypatch):
    data = load(DataConfig(dataset="marketplace", task="relevance", options=MARKETPLACE))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    monkeypatch.setattr(Evaluator, "bm25", lambda _, examples: np.zeros(len(examples)))
    found = Evaluator(data).scored(student)
    assert found.with_bm25["weight"] == 0.0
    assert found.with_bm25["ndcg@10"] == pytest.approx(found.metrics["ndcg@10"])
