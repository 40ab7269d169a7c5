"""Students on judged examples: which queries count, cross-validated weights, and files with mistakes."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fed_distill.data.examples import Ranking
from fed_distill.data.tasks import FIXED, RELEVANCE, SENTIMENT
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation.metrics import ranking
from fed_distill.evaluation.with_words import with_bm25
from fed_distill.seeds import numpy_stream
from fed_distill.serving.judgements import JudgedColumns, read_judgements
from fed_distill.serving.judging import ENGINE, FEWEST_QUERIES, FOLDS, judge, weights_for

GRADES = ("exact", "substitute", "complement", "irrelevant")


def scorer_of(probabilities, task=RELEVANCE):
    """A student that gives (text, pair) these class probabilities."""
    return SimpleNamespace(
        task=task,
        max_characters=40,
        predict=lambda texts, pairs=None: np.array(
            [probabilities[key] for key in (zip(texts, pairs, strict=True) if pairs else texts)], dtype=np.float32
        ),
    )


@pytest.fixture
def table(tmp_path):
    """A function that writes rows with this header to a CSV file."""

    def write(header, *rows):
        path = tmp_path / "judged.csv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


def test_queries_with_one_grade_do_not_count_and_the_rest_is_measured_by_hand(table):
    path = table(
        "text,pair,label,score",
        *("hub,good,exact,1", "hub,fair,substitute,2", "hub,bad,irrelevant,3"),
        *("shoe,only,exact,1", "shoe,other,exact,2"),
        *("pot,none,irrelevant,1", "pot,none at all,irrelevant,2"),
    )
    found = read_judgements(path, RELEVANCE, JudgedColumns(score="score"), 40)
    certain = np.eye(4)
    student = scorer_of(
        {(text, pair): certain[found.examples.labels[row]]
         for row, (text, pair) in enumerate(zip(found.examples.texts, found.examples.pairs, strict=True))}
    )  # fmt: skip
    judgment = judge(found, {"student": student})
    assert (judgment.units, judgment.asked, judgment.queries) == (1, 3, ["hub"])
    assert judgment.reversed == 1.0  # the engine's scores are the wrong way round
    assert [row.name for row in judgment.rows] == [ENGINE, "student"]  # too few queries to choose a weight
    ideal = 1.0 + 0.1 / math.log2(3)
    worst = 0.0 + 0.1 / math.log2(3) + 1.0 / math.log2(4)
    assert judgment.rows[0].by_unit == pytest.approx([worst / ideal])
    assert judgment.rows[1].by_unit == pytest.approx([1.0])
    assert judgment.rows[0].metrics["mrr@10"] == pytest.approx(1 / 3)


def many_queries(count):
    """Judged queries of four candidates, a student and an engine that are each right in half of them."""
    draw = np.random.default_rng(0)
    rows, probabilities = [], {}
    for query in range(count):
        for candidate, grade in enumerate(GRADES):
            right = 3.0 - candidate
            engine = draw.normal(right if query % 2 else 0.0, 1.0) * 10
            own = draw.normal(0.0 if query % 2 else right, 1.0)
            share = 1 / (1 + math.exp(-own))
            key = f"query {query}", f"title {candidate} {query}"
            probabilities[key] = [share, 0.0, 0.0, 1.0 - share]
            rows.append(f"{key[0]},{key[1]},{grade},{engine!r}")
    return rows, scorer_of(probabilities)


def test_each_query_has_the_weight_that_is_best_on_the_other_parts(table):
    rows, student = many_queries(FEWEST_QUERIES)
    found = read_judgements(table("text,pair,label,score", *rows), RELEVANCE, JudgedColumns(score="score"), 40)
    engine, alone, both = judge(found, {"a": student}).rows
    assert both.name == "a + search engine"
    assert both.metrics["ndcg@10"] > max(engine.metrics["ndcg@10"], alone.metrics["ndcg@10"])
    weights, gains = weights_for(found.engine), student.predict(found.examples.texts, found.examples.pairs)[:, 0]

    @functools.cache
    def of_query(query, weight):
        rows = np.flatnonzero(found.examples.groups == query)
        view = Ranking(found.examples.take(rows), np.zeros(len(rows), np.int64))
        return ranking(with_bm25(gains[rows], found.engine[rows], weight), view, RELEVANCE)["ndcg@10"]

    part = numpy_stream(0, "judging").permutation(FEWEST_QUERIES) % FOLDS
    assert np.bincount(part).tolist() == [FEWEST_QUERIES // FOLDS] * FOLDS
    for query in range(FEWEST_QUERIES):
        others = [other for other in range(FEWEST_QUERIES) if part[other] != part[query]]
        means = {weight: sum(of_query(other, weight) for other in others) for weight in weights}
        best = [weight for weight in weights if means[weight] == pytest.approx(max(means.values()), abs=1e-12)]
        assert both.by_unit[query] == pytest.approx(of_query(query, best[0]))
    every = [sum(of_query(query, weight) for query in range(FEWEST_QUERIES)) for weight in weights]
    assert both.weight == weights[int(np.argmax(every))]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_weights_to_try_follow_the_scale_of_the_scores(scale):
    weights = weights_for(np.array([-1.0, 1.0]) * scale)
    assert weights[0] == 0.0
    assert 0.003 < weights[1] * scale < 0.04 and 15.0 < weights[-1] * scale < 160.0
    assert weights_for(np.ones(3)) == (0.0,)


def test_texts_are_measured_by_macro_f1(table):
    path = table("text,label", "good,positive", "bad,0", "fine,1", ",positive", "good,negative", "odd,maybe")
    found = read_judgements(path, SENTIMENT, JudgedColumns(), 40)
    assert found.account["dropped"] == {
        "no merchant": 0, "empty": 1, "too long": 0, "unknown label": 1, "duplicate": 1
    }  # fmt: skip
    student = scorer_of({"good": [0.1, 0.9], "bad": [0.9, 0.1], "fine": [0.6, 0.4]}, SENTIMENT)
    (row,) = judge(found, {"student": student}).rows
    assert row.metrics["accuracy"] == pytest.approx(2 / 3)
    assert np.mean(row.by_unit) == pytest.approx(row.metrics["macro_f1"]) == pytest.approx(2 / 3)


def test_labels_are_mapped_and_empty_scores_are_0(table):
    path = table("text,pair,label,score", "hub,a,E,3.5", "hub,b,I,", "hub,c,I,1")
    columns = JudgedColumns(score="score", labels={"E": "exact", "I": "irrelevant"})
    found = read_judgements(path, RELEVANCE, columns, 40)
    assert found.examples.labels.tolist() == [0, 3, 3]
    assert (found.engine.tolist(), found.unscored) == ([3.5, 0.0, 1.0], 1)


@pytest.mark.parametrize(
    ("rows", "columns", "error", "message"),
    [
        (["hub,a,E,1"], {}, DataError, r"no label is a class of relevance, .*; the labels are 'E' \(1\): .*--label"),
        (["hub,a,E,1"], {"labels": {"E": "best"}}, ConfigError, "relevance has no class 'best'"),
        (["hub,a,exact,1"], {"labels": {"E": "exact"}}, ConfigError, "no row of .* has the label 'E'; it has 'exact'"),
        (
            ["hub,a,exact,much"],
            {"score": "score"},
            DataError,
            "row 1: .* holds 'much', which is no finite",
        ),
        (["hub,a,exact,1", "hub,b,exact,inf"], {"score": "score"}, DataError, "row 2: .* no finite number"),
        (["hub,a,exact,1"], {"pair": ""}, ConfigError, "must name columns"),
        (["hub,a,exact,1"], {"label": "grade"}, DataError, "no column 'grade'"),
        ([f"{'x' * 41},a,exact,1"], {}, DataError, "none of its 1 rows can be used: 1 too long"),
    ],
)
def test_mistakes_are_named(table, rows, columns, error, message):
    path = table("text,pair,label,score", *rows)
    with pytest.raises(error, match=message):
        read_judgements(path, RELEVANCE, JudgedColumns(**columns), 40)


def test_scores_are_for_rankings_and_students_have_one_task(table):
    path = table("text,label,score", "good,positive,1")
    with pytest.raises(ConfigError, match="--score-column is for tasks that rank"):
        read_judgements(path, SENTIMENT, JudgedColumns(score="score"), 40)
    found = read_judgements(path, SENTIMENT, JudgedColumns(), 40)
    with pytest.raises(ConfigError, match="b is of task relevance and a of sentiment"):
        judge(found, {"a": scorer_of({}, SENTIMENT), "b": scorer_of({})})


def test_nothing_to_rank_is_an_error(table):
    path = table("text,pair,label", "hub,a,exact", "hub,b,exact", "pot,c,irrelevant")
    with pytest.raises(DataError, match="no query has candidates of two grades"):
        judge(read_judgements(path, FIXED["relevance"], JudgedColumns(), 40), {"a": scorer_of({})})


def test_contradicted_and_unknown_labels_are_counted(table):
    path = table(
        "text,pair,label", "hub,a,exact", "hub, a,irrelevant", "hub,b,irrelevant", "hub,b,irrelevant", "hub,c,E"
    )
    found = read_judgements(path, RELEVANCE, JudgedColumns(), 40)
    assert found.account["dropped"]["duplicate"] == 2 and found.contradicted == 1
    assert found.unknown == {"E": 1}


def test_without_a_score_a_row_is_not_above_negative_ones(table):
    path = table("text,pair,label,score", "hub,a,exact,-3", "hub,b,irrelevant,-7.5", "hub,c,irrelevant,")
    found = read_judgements(path, RELEVANCE, JudgedColumns(score="score"), 40)
    assert found.engine.tolist() == [-3.0, -7.5, -7.5]


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_scores_of_any_size_have_weights(scale):
    weights = weights_for(np.array([-1.0, 0.5, 1.0]) * scale)
    assert len(weights) > 2 and np.isfinite(weights).all()


def test_too_few_grades_are_told_with_what_was_left_out(table):
    path = table("text,pair,label", "hub,a,exact", "hub,b,E")
    with pytest.raises(DataError, match="rows left out: 1 unknown label"):
        judge(read_judgements(path, RELEVANCE, JudgedColumns(), 40), {"a": scorer_of({})})
