"""Evaluate a student on the common validation and test sets; texts are encoded once for each student model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fed_distill.data.examples import Examples, FederatedData, Ranking
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import DataError
from fed_distill.evaluation.bm25_weight import best_weight
from fed_distill.evaluation.campaigns import qini_by_block, qini_of, trial_of
from fed_distill.evaluation.cold_start import Rows, by_kind, rows_by_kind
from fed_distill.evaluation.lexical import bm25
from fed_distill.evaluation.metrics import (
    Metrics,
    auc,
    classification,
    expected_gains,
    headline,
    macro_f1_by_group,
    ndcg_by_query,
    ranking,
)
from fed_distill.evaluation.recommenders import Recommender, Scores
from fed_distill.evaluation.resampling import Resampled, macro_f1_of, mean_of, qini_of_trial, resampled
from fed_distill.evaluation.uplift import Trial
from fed_distill.evaluation.with_words import with_bm25
from fed_distill.models import TextModel
from fed_distill.models.prediction import PreparedExamples, predict_prepared, prepare
from fed_distill.transport.requests import blueprint_of


@dataclass(frozen=True)
class Scored:
    """All scores of a student. metrics, by_unit: see `Evaluator.test_by_unit`. validation: metrics on the common
    validation set. cold: see `Evaluator.cold`. with_bm25: ranking metrics on the common test set of the sum of the
    student's scores and BM25's, and the ``weight`` of BM25 in it, which is best in validation; None for tasks without
    queries. with_bm25_by_unit: nDCG@10 of the sum by query."""

    metrics: Metrics
    by_unit: list[float]
    validation: Metrics
    cold: Metrics | None
    with_bm25: Metrics | None
    with_bm25_by_unit: list[float]


@dataclass(frozen=True)
class _Measured:
    """metrics: all of a part. by_query: nDCG@10 by query. gains: expected gains of the ranking view's candidates."""

    metrics: Metrics
    by_query: list[float]
    gains: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class Evaluator:
    """Scores students on ``data``'s validation and test parts."""

    def __init__(self, data: FederatedData) -> None:
        self._data = data
        self._prepared: dict[tuple[str, str], PreparedExamples] = {}
        self._trials: dict[str, Trial] = {}
        self._words: dict[str, Scores] = {}
        self._kinds: dict[str, Rows] | None = None

    def test(self, student: TextModel) -> Metrics:
        """Return all metrics on the common test set."""
        return self.test_by_unit(student)[0]

    def scored(self, student: TextModel) -> Scored:
        """Return all scores of a student, for which it reads each set once."""
        data = self._data
        valid = self._measure(student, "valid", data.valid, data.ranking_valid)
        cold = self.cold(student)
        if data.task.gains is None:
            return Scored(*self.test_by_unit(student), valid.metrics, cold, None, [])
        test = self._measure(student, "test", data.test, data.ranking_test)
        return Scored(test.metrics, test.by_query, valid.metrics, cold, *self._with_bm25(valid, test))

    def test_by_unit(self, student: TextModel) -> tuple[Metrics, list[float]]:
        """Return all metrics on the common test set, and values by test unit whose mean is the headline metric: nDCG@10
        by query, for campaigns the Qini coefficient by block of customers, or else macro-F1 by group of examples."""
        data = self._data
        if data.task.gains is not None:
            found = self._measure(student, "test", data.test, data.ranking_test)
            return found.metrics, found.by_query
        measured, probabilities = self._classified(student, "test", data.test)
        if data.task.of_campaigns:
            return measured, qini_by_block(probabilities, self._trial("test", data.test))
        return measured, macro_f1_by_group(probabilities, data.test.labels, data.test.groups)

    def recommender_by_unit(self, scores: Recommender) -> tuple[Metrics, list[float]]:
        """Return AUC and ranking metrics on the common test set, and nDCG@10 by query, of a recommender whose scores
        are no probabilities: it has no accuracy."""
        return self._recommended(scores, "test", self._data.test, self._data.ranking_test)

    def recommender_cold(self, scores: Recommender) -> Metrics | None:
        """Return what `recommender_by_unit` does on cold-start merchants' test examples; None without any."""
        cold = self._data.cold
        return None if cold is None else self._recommended(scores, "cold", cold.test, cold.ranking)[0]

    def validation(self, student: TextModel) -> Metrics:
        """Return all metrics on the common validation set."""
        return self._measure(student, "valid", self._data.valid, self._data.ranking_valid).metrics

    def cold(self, student: TextModel) -> Metrics | None:
        """Return all metrics on cold-start merchants' test examples (``data.cold_merchants``); None without any."""
        cold = self._data.cold
        return None if cold is None else self._measure(student, "cold", cold.test, cold.ranking).metrics

    def validation_score(self, student: TextModel) -> float:
        """Return the headline metric on the common validation set."""
        return self.score(self.validation(student))

    def score(self, validation: Metrics) -> float:
        """Select the headline metric from those on the common validation set."""
        value = headline(validation, self._data.task)
        if value is None:
            raise DataError("the validation set gives no headline metric: increase data.valid_share")
        return value

    def public_score(self, student: TextModel) -> float:
        """Return macro-F1 on the server's own validation examples, which is independent of merchants' data."""
        return self._of_public(self._on_public(student)[0])

    def validation_resampled(self, student: TextModel) -> Resampled:
        """Return ``validation_score``, and its values on resamples of the queries, customers or groups of examples."""
        examples = self._data.valid
        found = self._measure(student, "valid", examples, self._data.ranking_valid)
        self.score(found.metrics)
        if self._data.task.gains is not None:
            return resampled(mean_of(found.by_query), range(len(found.by_query)))
        probabilities = predict_prepared(student, self._prepare(student, "valid", examples)).numpy()
        if self._data.task.of_campaigns:
            trial = self._trial("valid", examples)
            return resampled(qini_of_trial(probabilities, trial), trial.customers)
        return resampled(macro_f1_of(probabilities, examples.labels), examples.groups)

    def public_resampled(self, student: TextModel) -> Resampled:
        """Return ``public_score``, and its values on resamples of the groups of examples."""
        measured, probabilities = self._on_public(student)
        self._of_public(measured)
        examples = self._data.public_valid
        return resampled(macro_f1_of(probabilities, examples.labels), examples.groups)

    def _of_public(self, measured: Metrics) -> float:
        value = measured["macro_f1"]
        if value is None:
            raise DataError("the public validation set gives no macro-F1: increase data.valid_share")
        return value

    def _on_public(self, student: TextModel) -> tuple[Metrics, npt.NDArray[np.float32]]:
        examples = self._data.public_valid
        probabilities = predict_prepared(student, self._prepare(student, "public validation", examples)).numpy()
        return classification(probabilities, examples.labels, self._data.task), probabilities

    def test_probabilities(self, student: TextModel) -> Tensor:
        """Return class probabilities on the common test set ``[test, classes]``."""
        return predict_prepared(student, self._prepare(student, "test", self._data.test))

    def _measure(self, student: TextModel, part: str, examples: Examples, ranked: Ranking | None) -> _Measured:
        measured, _ = self._classified(student, part, examples)
        task = self._data.task
        if ranked is None:
            return _Measured(measured, [])
        found = predict_prepared(student, self._prepare(student, f"ranking {part}", ranked.examples)).numpy()
        gains = expected_gains(found, task)
        measured |= self._ranking(gains, part, ranked)
        return _Measured(measured, ndcg_by_query(gains, ranked, task), gains)

    @cached_property
    def bm25(self) -> Recommender:
        """BM25 with the titles that the server has: of its labelled examples and of the proxy set."""
        return bm25(title for table in (self._data.public, self._data.proxy) for title in table.pairs or ())

    def _with_bm25(self, valid: _Measured, test: _Measured) -> tuple[Metrics | None, list[float]]:
        """Return `Scored.with_bm25` and ``with_bm25_by_unit`` of a student with these results on the validation and the
        test set."""
        data = self._data
        if data.task.name != RELEVANCE.name or data.ranking_valid is None or data.ranking_test is None:
            return None, []
        words = self._bm25_of("valid", data.ranking_valid)
        weight = best_weight(valid.gains, words, data.ranking_valid, data.task)
        summed = with_bm25(test.gains, self._bm25_of("test", data.ranking_test), weight)
        by_query = ndcg_by_query(summed, data.ranking_test, data.task)
        return {**ranking(summed, data.ranking_test, data.task), "weight": weight}, by_query

    def _bm25_of(self, part: str, ranked: Ranking) -> Scores:
        if part not in self._words:
            self._words[part] = self.bm25(ranked.examples)
        return self._words[part]

    def _recommended(
        self, scores: Recommender, part: str, examples: Examples, ranked: Ranking | None
    ) -> tuple[Metrics, list[float]]:
        found = auc(scores(examples), examples.labels, self._data.task)
        measured: Metrics = {"accuracy": None, "macro_f1": None, "auc": found, "n": len(examples)}
        if ranked is None:
            return measured, []
        of_candidates = scores(ranked.examples)
        measured |= self._ranking(of_candidates, part, ranked)
        return measured, ndcg_by_query(of_candidates, ranked, self._data.task)

    def _ranking(self, scores: Scores, part: str, ranked: Ranking) -> Metrics:
        """Return all ranking metrics of a part; those by kind of product and customer of the test part alone."""
        task = self._data.task
        kinds = by_kind(scores, ranked, self._rows_by_kind(), task) if part == "test" else {}
        return ranking(scores, ranked, task) | kinds

    def _classified(self, student: TextModel, part: str, examples: Examples) -> tuple[Metrics, npt.NDArray[np.float32]]:
        """Return the metrics of single examples and customers, and class probabilities ``[n, classes]``."""
        if not len(examples):
            share = "test" if part == "cold" else part
            raise DataError(f"the common {part} set is empty: increase data.{share}_share, or decrease data.min_rows")
        probabilities = predict_prepared(student, self._prepare(student, part, examples)).numpy()
        measured = dict(classification(probabilities, examples.labels, self._data.task))
        if self._data.task.of_campaigns:
            measured["qini"] = qini_of(probabilities, self._trial(part, examples))
        return measured, probabilities

    def _rows_by_kind(self) -> dict[str, Rows]:
        if self._kinds is None:
            self._kinds = rows_by_kind(self._data)
        return self._kinds

    def _trial(self, part: str, examples: Examples) -> Trial:
        if part not in self._trials:
            self._trials[part] = trial_of(examples)
        return self._trials[part]

    def _prepare(self, student: TextModel, name: str, examples: Examples) -> PreparedExamples:
        key = (blueprint_of(student), name)
        if key not in self._prepared:
            self._prepared[key] = prepare(student, student.encode(examples.texts, examples.pairs))
        return self._prepared[key]


def mean_metrics(several: list[Metrics]) -> Metrics:
    """Return the mean of each metric over students; None if one lacks it."""
    return {name: _mean([metrics[name] for metrics in several]) for name in several[0]}


class MeanByUnit:
    """The mean of each test unit's score over students, without keeping all students' scores."""

    def __init__(self) -> None:
        self._total: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, scores: list[float]) -> None:
        """Add one student's scores, of the same units as those of all others."""
        added = np.asarray(scores, dtype=np.float64)
        self._total = added if self._total is None else self._total + added
        self._count += 1

    @property
    def values(self) -> list[float]:
        """The means; empty without students or units."""
        return [] if self._total is None else [float(value) for value in self._total / self._count]


def accuracies(counts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Return accuracy by merchant from (correct, all)."""
    return {merchant: right / count for merchant, (right, count) in counts.items()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
