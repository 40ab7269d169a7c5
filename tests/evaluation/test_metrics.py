"""Metrics against scikit-learn, hand computation and published tables."""

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, ndcg_score, roc_auc_score

from fed_distill.data.examples import Examples, Ranking, Task
from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.errors import DataError, TrainingError
from fed_distill.evaluation.metrics import (
    classification,
    classification_report,
    expected_gains,
    headline,
    macro_f1_by_group,
    ndcg_by_query,
    ranking,
    worst_merchant,
)
from fed_distill.evaluation.resampling import REPEATS, macro_f1_of, resampled
from fed_distill.evaluation.statistics import difference, estimate

GRADES = Task("relevance", ("irrelevant", "complement", "substitute", "exact"), True, "exact", (0.0, 0.01, 0.1, 1.0))
BINARY = Task("recommend", ("no", "yes"), True, "yes")


def certain(classes, count=4):
    """Probabilities that are sure of the given classes."""
    return np.eye(count)[classes]


def gains(classes):
    """Expected gains of predictions that are sure of the given classes."""
    return expected_gains(certain(classes), GRADES)


def candidates(labels, queries):
    rows = len(labels)
    texts = tuple(f"text {row}" for row in range(rows))
    examples = Examples(texts, texts, np.asarray(labels), np.zeros(rows, dtype=np.int64), ("m",) * rows)
    return Ranking(examples, np.asarray(queries))


def test_classification_of_six_examples_counted_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.8, 0.2], [0.4, 0.6]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    result = classification(probabilities, labels, BINARY)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["macro_f1"] == pytest.approx(2 / 3)  # both classes: precision 2/3, recall 2/3
    assert result["auc"] == pytest.approx(6 / 9)  # of 9 (yes, no) pairs: 0.8 beats 3, 0.2 beats 1, 0.6 beats 2
    assert result["n"] == 6


def test_macro_f1_leaves_out_classes_that_occur_nowhere():
    labels = np.array([0, 0, 3, 3])
    result = classification(certain([0, 0, 3, 0]), labels, GRADES)
    assert result["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_macro_f1_counts_a_class_that_is_only_predicted():
    result = classification(certain([0, 1]), np.array([0, 0]), GRADES)
    assert result["macro_f1"] == pytest.approx((2 / 3 + 0.0) / 2)


@given(st.integers(0, 2**32 - 1))
def test_classification_agrees_with_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels = np.append(random.integers(0, 4, 20), [0, 3])
    probabilities = random.dirichlet(np.ones(4), 22)
    result = classification(probabilities, labels, GRADES)
    assert result["macro_f1"] == pytest.approx(f1_score(labels, probabilities.argmax(1), average="macro"))
    assert result["auc"] == pytest.approx(roc_auc_score(labels == 3, probabilities[:, 3]))


def test_auc_is_none_where_only_one_side_occurs():
    assert classification(certain([3, 3]), np.array([3, 3]), GRADES)["auc"] is None
    assert classification(certain([0, 1]), np.array([0, 1]), GRADES)["auc"] is None


def test_nothing_is_measured_on_no_examples():
    result = classification(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), GRADES)
    assert result == {"accuracy": None, "macro_f1": None, "auc": None, "n": 0}


def test_predictions_that_are_not_finite_are_refused_with_their_row():
    probabilities = certain([0, 1, 2])
    probabilities[1, 2] = np.nan
    with pytest.raises(TrainingError, match=r"row 1 .*learning_rate"):
        classification(probabilities, np.array([0, 1, 2]), GRADES)


def test_an_unlabeled_test_example_is_refused():
    with pytest.raises(DataError, match="relevance"):
        classification(certain([0, 1]), np.array([0, -1]), GRADES)


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\), not \(3, 4\)"):
        classification(certain([0, 1]), np.array([0, 1, 2]), GRADES)


def test_ndcg_of_one_query_by_hand():
    # Order given by the model: substitute, exact, irrelevant; ideal: exact, substitute, irrelevant.
    result = ranking(gains([3, 2, 1]), candidates([2, 3, 0], [7, 7, 7]), GRADES)
    model = 0.1 / np.log2(2) + 1.0 / np.log2(3)
    ideal = 1.0 / np.log2(2) + 0.1 / np.log2(3)
    assert result["ndcg@10"] == pytest.approx(model / ideal)
    assert result["mrr@10"] == pytest.approx(1 / 2)
    assert (result["queries"], result["skipped_queries"]) == (1, 0)


@given(st.integers(0, 2**32 - 1))
def test_ndcg_agrees_with_scikit_learn_where_nothing_ties(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, (5, 30))
    labels[:, 0] = 3
    probabilities = random.dirichlet(np.ones(4), 150)
    true, scores = np.asarray(GRADES.gains)[labels], expected_gains(probabilities, GRADES)
    np.testing.assert_allclose(
        scores, [sum(p * g for p, g in zip(row, GRADES.gains, strict=True)) for row in probabilities]
    )
    expected = ndcg_score(true, scores.reshape(5, 30), k=10)
    mixed = random.permutation(150)
    view = candidates(labels.ravel()[mixed], np.repeat(np.arange(5), 30)[mixed])
    assert ranking(scores[mixed], view, GRADES)["ndcg@10"] == pytest.approx(expected)
    each = [ndcg_score(own[None], of[None], k=10) for own, of in zip(true, scores.reshape(5, 30), strict=True)]
    assert ndcg_by_query(scores[mixed], view, GRADES) == pytest.approx(each)


def grouped_predictions(seed, classes=4, rows=60):
    """Probabilities, labels and groups of three rows; class 2 has no example, and one class is rarely predicted."""
    random = np.random.default_rng(seed)
    labels = np.where((drawn := random.integers(0, classes, rows)) == 2, 0, drawn)
    probabilities = random.dirichlet(np.ones(classes), rows)
    probabilities[np.arange(rows), labels] += 0.4
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels, random.permutation(np.arange(rows) // 3)


@given(st.integers(0, 2**32 - 1))
def test_macro_f1_by_group_is_the_jackknife_of_scikit_learns_score(seed):
    probabilities, labels, groups = grouped_predictions(seed)
    predicted = probabilities.argmax(axis=1)
    found = np.array(macro_f1_by_group(probabilities, labels, groups))
    value = f1_score(labels, predicted, average="macro")
    left = np.array(
        [f1_score(labels[own], predicted[own], average="macro") for own in groups != np.arange(20)[:, None]]
    )
    assert found == pytest.approx(value - 19 * (left - left.mean()))
    jackknife = np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())
    assert found.std(ddof=1) / np.sqrt(20) == pytest.approx(jackknife)


def test_the_standard_errors_of_macro_f1_and_of_a_difference_are_the_bootstraps():
    first, labels, groups = grouped_predictions(0, rows=3000)
    second = grouped_predictions(1, rows=3000)[0]
    values = [macro_f1_by_group(student, labels, groups) for student in (first, second)]
    drawn = [resampled(macro_f1_of(student, labels), groups) for student in (first, second)]
    nothing = replace(drawn[0], resamples=np.zeros(REPEATS))
    samples = [[np.array([one])] for one in values]
    assert estimate(samples[0]).error == pytest.approx(drawn[0].standard_error(nothing), rel=0.15)
    between = estimate(difference(*samples))
    assert between.value == pytest.approx(drawn[0].value - drawn[1].value)
    assert between.error == pytest.approx(drawn[0].standard_error(drawn[1]), rel=0.15)


def test_a_difference_that_hangs_on_one_example_is_not_significant():
    labels = np.arange(200) % 2
    wrong = np.random.default_rng(0).permutation(200)[:20]
    ours, theirs = labels.copy(), labels.copy()
    ours[wrong] = theirs[wrong] = 1 - labels[wrong]
    theirs[wrong[0]] = 2  # a class that no label has: macro-F1 falls by a third
    samples = [[np.array([macro_f1_by_group(np.eye(3)[one], labels, np.arange(200))])] for one in (ours, theirs)]
    found = estimate(difference(*samples))
    assert found.value == pytest.approx(0.3, abs=0.01)
    assert found.p_value > 0.05


def test_a_single_group_has_macro_f1_itself():
    probabilities, labels, _ = grouped_predictions(3)
    expected = f1_score(labels, probabilities.argmax(axis=1), average="macro")
    assert macro_f1_by_group(probabilities, labels, np.zeros(60, dtype=np.int64)) == pytest.approx([expected])


def test_a_student_that_is_always_right_has_the_same_value_everywhere():
    assert macro_f1_by_group(certain([3, 0, 3]), np.array([3, 0, 3]), np.array([5, 5, 7])) == [1.0, 1.0]


def test_queries_without_a_relevant_candidate_are_skipped_and_counted():
    result = ranking(gains([3, 0, 0, 3]), candidates([3, 0, 0, 0], [1, 1, 2, 2]), GRADES)
    assert result == {"ndcg@10": 1.0, "mrr@10": 1.0, "queries": 1, "skipped_queries": 1}
    assert ndcg_by_query(gains([3, 0, 0, 3]), candidates([3, 0, 0, 0], [1, 1, 2, 2]), GRADES) == [1.0]


def test_a_query_without_an_exact_candidate_has_no_reciprocal_rank():
    result = ranking(gains([3, 0]), candidates([2, 0], [1, 1]), GRADES)
    assert result["ndcg@10"] == 1.0
    assert result["mrr@10"] is None


def test_the_reciprocal_rank_is_zero_beyond_the_tenth_place():
    labels = [0] * 10 + [3]
    result = ranking(gains([3] * 10 + [0]), candidates(labels, [0] * 11), GRADES)
    assert result["mrr@10"] == 0.0
    assert result["ndcg@10"] == 0.0


def test_recall_of_the_next_basket_by_hand():
    labels = np.full(30, 1)
    labels[[0, 19, 20, 29]] = 0  # bought: the first, the twentieth, the twenty-first and the last of the model's order
    order = np.linspace(0.9, 0.1, 30)
    found = ranking(order, candidates(labels, [0] * 30), NEXT_BASKET)
    assert found["recall@20"] == pytest.approx(2 / 4)
    every = ranking(order, candidates(np.zeros(30, int), [0] * 30), NEXT_BASKET)
    assert every["recall@20"] == 1.0  # of thirty that were bought, twenty can be among the first twenty


@pytest.mark.parametrize("labels", [[3, 0, 0, 0], [0, 0, 0, 3], [0, 3, 0, 0]])
def test_a_model_that_cannot_tell_candidates_apart_gains_nothing_by_their_order(labels):
    result = ranking(np.full(4, 0.25), candidates(labels, [0] * 4), GRADES)
    assert result["mrr@10"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert result["ndcg@10"] == pytest.approx(sum(1 / np.log2(rank + 1) for rank in (1, 2, 3, 4)) / 4)


@given(st.integers(0, 2**32 - 1))
def test_of_equal_scores_all_orders_are_equally_likely(seed):
    """Against the mean over all orders of each run of equal scores, and nDCG against scikit-learn's."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 6)
    labels[random.integers(6)] = 3
    scores = random.integers(0, 3, 6).astype(float)
    result = ranking(scores, candidates(labels, [0] * 6), GRADES)
    orders = [order for order in permutations(range(6)) if all(scores[a] >= scores[b] for a, b in pairwise(order))]
    every = [ranking(np.argsort(order) * -1.0, candidates(labels, [0] * 6), GRADES) for order in orders]
    for name in ("ndcg@10", "mrr@10"):
        assert result[name] == pytest.approx(np.mean([one[name] for one in every]))
    assert result["ndcg@10"] == pytest.approx(ndcg_score(np.asarray(GRADES.gains)[labels][None], scores[None], k=10))


def test_equal_scores_across_the_cut_count_in_part():
    """Of twelve equal candidates one is relevant: it is at each of the twelve ranks equally often."""
    labels = np.zeros(12, dtype=np.int64)
    labels[11] = 3
    result = ranking(np.zeros(12), candidates(labels, [0] * 12), GRADES)
    assert result["mrr@10"] == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 12)
    bought = np.ones(30, dtype=np.int64)
    bought[[3, 17, 29]] = 0
    found = ranking(np.zeros(30), candidates(bought, [0] * 30), NEXT_BASKET)
    assert found["recall@20"] == pytest.approx(20 / 30)


def test_a_task_without_gains_has_no_ranking():
    with pytest.raises(DataError, match="recommend"):
        ranking(np.full(2, 0.5), candidates([0, 1], [0, 0]), BINARY)
    with pytest.raises(DataError, match="recommend"):
        expected_gains(np.full((2, 2), 0.5), BINARY)


def test_scores_of_other_candidates_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\), not \(2,\)"):
        ranking(np.zeros(3), candidates([0, 1], [0, 0]), GRADES)


def test_the_headline_is_ndcg_for_graded_tasks_and_macro_f1_otherwise():
    metrics = {"macro_f1": 0.7, "ndcg@10": 0.9}
    assert headline(metrics, GRADES) == 0.9
    assert headline(metrics, BINARY) == 0.7
    with pytest.raises(DataError, match=r"ndcg@10 .*no ranking view"):
        headline({"macro_f1": 0.7}, GRADES)


def test_the_worst_merchant_has_enough_test_examples():
    worst = worst_merchant({"tiny": 0.1, "small": 0.7, "large": 0.9}, {"tiny": 2, "small": 20, "large": 400})
    assert worst is not None
    assert (worst.merchant, worst.accuracy, worst.examples) == ("small", 0.7, 20)


def test_the_worst_merchant_is_any_where_most_have_too_few_examples():
    worst = worst_merchant({"large": 0.9, "small": 0.4, "tiny": 0.5}, {"large": 400, "small": 19, "tiny": 2})
    assert worst is not None and worst.merchant == "small"


def test_the_worst_merchant_is_any_where_none_has_enough_examples():
    worst = worst_merchant({"b": 0.5, "a": 0.5, "c": 0.6}, {"a": 1, "b": 2, "c": 3})
    assert worst is not None
    assert worst.merchant == "a"
    assert worst_merchant({}, {}) is None


def test_the_classification_report_lists_every_class():
    text = classification_report(certain([0, 3, 3]), np.array([0, 3, 0]), GRADES)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["irrelevant"] == ["1.0000", "0.5000", "0.6667", "2"]
    assert rows["exact"] == ["0.5000", "1.0000", "0.6667", "1"]
    assert rows["complement"][-1] == "0"
