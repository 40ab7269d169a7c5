"""Score students on judged examples: alone, and added to a search engine's scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Ranking, Task
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation.bm25_weight import by_weight
from fed_distill.evaluation.metrics import (
    Metrics,
    classification,
    expected_gains,
    macro_f1_by_group,
    ndcg_by_query,
    ranking,
)
from fed_distill.seeds import numpy_stream
from fed_distill.serving.judgements import Judgements, left_out
from fed_distill.serving.scorer import Scorer

ENGINE = "search engine"
FOLDS = 5
"""Parts of the queries: the weight of one part is chosen on the others."""
FEWEST_QUERIES = 50
"""Queries without which no weight is chosen."""
_SERIES = (1.0, 2.0, 5.0)
_DECADES = (-2, 2)
"""Weights times the standard deviation of the engine's scores, as powers of ten."""


@dataclass(frozen=True)
class Judged:
    """A row of the result.

    metrics: of a ranking those of the queries, otherwise of the examples. by_unit: nDCG@10 by query, or otherwise
    values by group whose mean is macro-F1. weight: of the engine's scores, best on all queries, for a sum; its
    metrics and by_unit are cross-validated: each query has the weight that is best on the other parts.
    """

    name: str
    metrics: Metrics
    by_unit: list[float]
    weight: float | None = None


@dataclass(frozen=True)
class Judgment:
    """rows: the search engine if it has scores, each student, and each student with the engine. units: number of
    queries, or groups, that count, of all in ``asked``. queries: texts of these queries, in the order of ``by_unit``;
    empty for tasks without gains. reversed: nDCG@10 of the engine's scores in reverse order; None without."""

    rows: list[Judged]
    units: int
    asked: int
    queries: list[str]
    reversed: float | None = None


def common_task(scorers: Mapping[str, Scorer]) -> Task:
    """Return the task of all students.

    :raises ConfigError: they differ in it, or it has no labelled texts (campaigns)
    """
    first, *others = scorers.items()
    for name, other in others:
        if other.task != first[1].task:
            raise ConfigError(
                f"{name} is of task {other.task.name} and {first[0]} of {first[1].task.name}, or with other classes"
            )
    if first[1].task.of_campaigns:
        raise ConfigError("effects of campaigns cannot be judged by labels: the run's campaign_effect.txt has them")
    return first[1].task


def judge(judgements: Judgements, scorers: Mapping[str, Scorer]) -> Judgment:
    """Score students of one task on judged examples.

    A ranking counts queries with candidates of at least two grades, of which one has a gain.

    :param scorers: students by name
    :raises DataError: no query counts, or a text is not accepted by a student
    """
    task, examples = common_task(scorers), judgements.examples
    if task.gains is None:
        rows = []
        for name, scorer in scorers.items():
            found = scorer.predict(examples.texts, examples.pairs)
            by_group = macro_f1_by_group(found, examples.labels, examples.groups)
            rows.append(Judged(name, classification(found, examples.labels, task), by_group))
        return Judgment(rows, len(rows[0].by_unit), len(rows[0].by_unit), [])
    kept = _comparable(examples.labels, examples.groups, task)
    if not len(kept):
        dropped = left_out(judgements.account)
        raise DataError(
            "no query has candidates of two grades, one of them with a gain, so that nothing can be ranked"
            + (f"; rows left out: {dropped}" if dropped else "")
        )
    view = Ranking(examples.take(kept), examples.groups[kept])
    engine = None if judgements.engine is None else judgements.engine[kept]
    queries = _texts(view)
    rows = [] if engine is None else [_ranked(ENGINE, engine, view, task)]
    for name, scorer in scorers.items():
        gains = expected_gains(scorer.predict(view.examples.texts, view.examples.pairs), task)
        rows.append(_ranked(name, gains, view, task))
        if engine is not None and len(queries) >= FEWEST_QUERIES:
            rows.append(_summed(f"{name} + {ENGINE}", gains, engine, view, task))
    turned = None if engine is None else ranking(-engine, view, task)["ndcg@10"]
    return Judgment(rows, len(queries), len(np.unique(examples.groups)), queries, turned)


def weights_for(scores: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the weights to try for scores of any scale: 0, and 1, 2 and 5 times powers of ten around one divided by
    their standard deviation."""
    largest = float(np.abs(scores).max(initial=0.0))
    spread = largest * float((scores / largest).std()) if largest else 0.0  # no overflow of squares
    if spread == 0.0:
        return (0.0,)
    middle = -round(float(np.log10(spread)))
    return (0.0, *(float(f"{step:g}e{middle + power}") for power in range(*_DECADES) for step in _SERIES))


def _comparable(labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], task: Task) -> npt.NDArray[np.intp]:
    """Return the rows of the queries that count."""
    gains = np.asarray(task.gains, dtype=np.float64)[labels]
    queries = range(int(groups.max(initial=-1)) + 1)
    highest, lowest = (np.full(len(queries), start) for start in (-np.inf, np.inf))
    np.maximum.at(highest, groups, gains)
    np.minimum.at(lowest, groups, gains)
    return np.flatnonzero(((highest > lowest) & (highest > 0.0))[groups])


def _ranked(name: str, scores: npt.NDArray[np.float64], view: Ranking, task: Task) -> Judged:
    return Judged(name, ranking(scores, view, task), ndcg_by_query(scores, view, task))


def _summed(
    name: str, gains: npt.NDArray[np.float64], engine: npt.NDArray[np.float64], view: Ranking, task: Task
) -> Judged:
    """Return the row of the sum of a student's and the engine's scores, with a cross-validated weight."""
    weights = weights_for(engine)
    each = by_weight(gains, engine, view, task, weights)
    part = numpy_stream(0, "judging").permutation(each.shape[1]) % FOLDS
    chosen = np.array([each[:, part != fold].mean(axis=1).argmax() for fold in range(FOLDS)])
    by_query = each[chosen[part], np.arange(each.shape[1])]
    found: Metrics = {"ndcg@10": float(by_query.mean())}
    return Judged(name, found, by_query.tolist(), weights[int(each.mean(axis=1).argmax())])


def _texts(view: Ranking) -> list[str]:
    """Return the query of each number, in order of the numbers, as ``ndcg_by_query`` has them."""
    texts: dict[int, str] = dict(zip(view.queries.tolist(), view.examples.texts, strict=True))
    return [texts[number] for number in sorted(texts)]
