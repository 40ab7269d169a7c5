"""Metrics and statistics, as pure functions of predictions and numbers.

Classification metrics are scikit-learn's. The ranking metrics follow the KDD Cup 2022 on shopping queries (Reddy et al.
2022, ESCI): nDCG at 10 with linear gains.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import classification_report as sklearn_report
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from fed_distill.data.examples import Ranking, Task
from fed_distill.errors import DataError, TrainingError
from fed_distill.evaluation.statistics import pseudo_values

Metrics = dict[str, float | None]
"""Values by metric name; None if the metric is undefined (no example, one class only)."""

CUT = 10
RECALL_CUT = 20
SCORES = ("accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10", "recall@20", "qini")
"""The metrics used in comparisons; other entries of ``Metrics`` are counts."""


def classification(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task) -> Metrics:
    """Compute accuracy, macro-F1 and the AUC of the positive class against the rest.

    macro_f1 is the mean over classes that occur in labels or predictions (as in scikit-learn), so that a class without
    examples does not count as 0. auc is None if labels are all positive or all negative; all metrics are None if n = 0.

    :param probabilities: class probabilities ``[n, classes]``
    :param labels: class indices ``[n]``
    :param task: the task
    :raises TrainingError: a probability is not finite
    :raises DataError: a label is not a class index
    """
    values = _checked(probabilities, len(labels), task)
    if len(labels) == 0:
        return {"accuracy": None, "macro_f1": None, "auc": None, "n": 0}
    if labels.min() < 0 or labels.max() >= len(task.classes):
        raise DataError(f"a test label of task {task.name!r} is not one of its {len(task.classes)} classes")
    predicted = values.argmax(axis=1)
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "auc": auc(values[:, task.positive_index], labels, task),
        "n": len(labels),
    }


def auc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task) -> float | None:
    """Compute the AUC of the positive class against the rest; None if labels are all positive or all negative.

    :param scores: of the positive class, higher is likelier, ``[n]``
    :param labels: class indices ``[n]``
    :param task: the task
    """
    positive = labels == task.positive_index
    both = bool(positive.any()) and not bool(positive.all())
    return float(roc_auc_score(positive, scores)) if both else None


def expected_gains(probabilities: npt.NDArray[np.floating], task: Task) -> npt.NDArray[np.float64]:
    """Return ``sum_c p_c * gain_c`` of each example, by which students rank, float64 ``[n]``.

    :param probabilities: class probabilities ``[n, classes]``
    :param task: a task with gains
    :raises TrainingError: a probability is not finite
    :raises DataError: the task has no gains
    """
    return _checked(probabilities, len(probabilities), task) @ _gains(task)


def ranking(scores: npt.NDArray[np.floating], ranking: Ranking, task: Task) -> Metrics:
    """Compute mean nDCG@10 and MRR@10 over queries, whose candidates are ranked by decreasing score. Tasks of histories
    have recall@20 too.

    nDCG@10 has the gains of the true grades, the discount 1/log2(rank + 1) and the ideal order over all candidates of a
    query; queries with no gain are skipped and counted in ``skipped_queries``. For MRR@10, candidates of the positive
    class are relevant, ranks beyond 10 give 0, and queries without a relevant candidate are skipped. recall@20 is the
    share of a query's relevant candidates, or of 20 where there are more, that are among the first 20. Of equal scores,
    all orders are equally likely, and each metric is its expectation over them (McSherry and Najork 2008, "Computing
    information retrieval performance measures efficiently in the presence of tied scores", ECIR), so that neither the
    stored order counts nor is a search by words, whose scores are often equal, ranked worse than it is.

    :param scores: of the candidates ``[n]``, aligned with ``ranking.examples``; of a student: ``expected_gains``
    :param ranking: queries and candidates
    :param task: a task with gains
    :raises DataError: the task has no gains
    """
    ndcg: list[float] = []
    reciprocal: list[float] = []
    recall: list[float] = []
    skipped = 0
    for query in _ranked(scores, ranking, task):
        found = _ndcg(query)
        if found is None:
            skipped += 1
        else:
            ndcg.append(found)
        if query.exact.any():
            reciprocal.append(_reciprocal_rank(query))
            first = _expected(query, query.exact)[:RECALL_CUT].sum()
            recall.append(float(first) / min(int(query.exact.sum()), RECALL_CUT))
    return {
        "ndcg@10": _mean(ndcg),
        "mrr@10": _mean(reciprocal),
        **({"recall@20": _mean(recall)} if task.of_histories else {}),
        "queries": len(ndcg),
        "skipped_queries": skipped,
    }


def ndcg_by_query(scores: npt.NDArray[np.floating], ranking: Ranking, task: Task) -> list[float]:
    """Return nDCG@10 of each query with a gain, in order of the queries' numbers: ``ranking``'s mean is over these.

    Which queries are skipped depends on the true grades alone, so that the values of several models are paired.

    Parameters and errors are those of ``ranking``.
    """
    found = [_ndcg(query) for query in _ranked(scores, ranking, task)]
    return [value for value in found if value is not None]


def macro_f1_by_group(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> list[float]:
    """Return a value for each group of examples, in order of the groups' numbers, whose mean is macro-F1 and whose
    standard error is macro-F1's by the jackknife.

    The values are the jackknife's (``pseudo_values``). With derivatives instead of leaving groups out, classes that a
    student alone predicts, or that have one example, would seem to have no variance.

    :param probabilities: class probabilities ``[n, classes]``
    :param labels: class indices ``[n]``
    :param groups: number of the group of each example ``[n]``; a group's examples are not independent
    """
    predicted, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    right = predicted == labels
    hits = np.bincount(labels[right], minlength=classes)
    size = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    f1 = _f1(hits, size)
    distinct, of_row = np.unique(groups, return_inverse=True)
    count = len(distinct)
    ends = np.concatenate([of_row * classes + labels, of_row * classes + predicted])
    cells, at = np.unique(ends, return_inverse=True)  # the classes that each group's examples have or are taken for
    group, own = cells // classes, cells % classes
    fewer_hits = np.bincount(at[: len(labels)], right, len(cells))
    size_left = size[own] - np.bincount(at)
    total = f1.sum() + np.bincount(group, _f1(hits[own] - fewer_hits, size_left) - f1[own], count)
    occurring = (size > 0).sum() - np.bincount(group, size_left == 0, count)
    value = f1.sum() / (size > 0).sum()
    if count == 1:
        return [float(value)]
    return pseudo_values(float(value), total / occurring)


def ndcg_weights(candidates: int) -> npt.NDArray[np.float64]:
    """Return the discounts 1/log2(rank + 1) of the first ``CUT`` ranks of so many candidates."""
    return 1.0 / np.log2(np.arange(min(candidates, CUT)) + 2)


def classification_report(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task) -> str:
    """Return precision, recall and F1 of all classes of the task as scikit-learn's text table."""
    values = _checked(probabilities, len(labels), task)
    text: str = sklearn_report(
        labels,
        values.argmax(axis=1),
        labels=list(range(len(task.classes))),
        target_names=list(task.classes),
        digits=4,
        zero_division=0.0,
    )
    return text


def confusion(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task
) -> npt.NDArray[np.int64]:
    """Count examples by true class (rows) and predicted class (columns), int64 ``[classes, classes]``."""
    values = _checked(probabilities, len(labels), task)
    counts: npt.NDArray[np.int64] = confusion_matrix(labels, values.argmax(axis=1), labels=range(len(task.classes)))
    return counts


def headline(metrics: Mapping[str, float | None], task: Task) -> float | None:
    """Return the metric used in comparisons; raise DataError if it was not computed."""
    if task.headline not in metrics:
        raise DataError(
            f"{task.headline} of task {task.name!r} was not computed: the dataset has no ranking view for this task"
        )
    return metrics[task.headline]


@dataclass(frozen=True)
class MerchantAccuracy:
    """One merchant's accuracy on its own test set of ``examples`` rows."""

    merchant: str
    accuracy: float
    examples: int


def worst_merchant(
    accuracies: Mapping[str, float], counts: Mapping[str, int], minimum: int = 20
) -> MerchantAccuracy | None:
    """Return the merchant with the lowest accuracy; ties are broken by name.

    :param accuracies: accuracy by merchant
    :param counts: number of test examples by merchant
    :param minimum: ignore merchants with fewer test examples, whose accuracies are noisy, unless most have fewer
    :returns: None without merchants
    """
    enough = [name for name in accuracies if counts[name] >= minimum]
    if 2 * len(enough) < len(accuracies):
        enough = list(accuracies)
    if not enough:
        return None
    name = min(enough, key=lambda merchant: (accuracies[merchant], merchant))
    return MerchantAccuracy(name, accuracies[name], counts[name])


def _checked(probabilities: npt.NDArray[np.floating], rows: int, task: Task) -> npt.NDArray[np.float64]:
    if probabilities.shape != (rows, len(task.classes)):
        raise ValueError(f"probabilities are {probabilities.shape}, not ({rows}, {len(task.classes)})")
    if not np.isfinite(probabilities).all():
        raise TrainingError(
            f"the model predicts values that are not finite (row {int(np.argwhere(~np.isfinite(probabilities))[0][0])} "
            f"of task {task.name!r}): lower learning_rate or set clip_norm in [training.merchants] or [training.server]"
        )
    return probabilities.astype(np.float64)


def _gains(task: Task) -> npt.NDArray[np.float64]:
    """Return the gain of each class ``[classes]``."""
    if task.gains is None:
        raise DataError(f"task {task.name!r} has no gains, so it has no ranking view")
    return np.asarray(task.gains, dtype=np.float64)


class _Query(NamedTuple):
    """A query's candidates by decreasing score: their gains, whether they are of the positive class, and where each
    run of equal scores begins, in ascending order."""

    gains: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]
    runs: npt.NDArray[np.intp]


def _ranked(scores: npt.NDArray[np.floating], ranking: Ranking, task: Task) -> Iterator[_Query]:
    """Yield each query's candidates by decreasing score."""
    labels = ranking.examples.labels
    gains = _gains(task)[labels]
    if scores.shape != labels.shape:
        raise ValueError(f"scores are {scores.shape}, not {labels.shape}")
    for rows in _rows_by_query(ranking.queries):
        ordered = rows[np.argsort(-scores[rows], kind="stable")]
        runs = np.flatnonzero(np.append(True, scores[ordered][1:] != scores[ordered][:-1]))
        yield _Query(gains[ordered], labels[ordered] == task.positive_index, runs)


def _expected(query: _Query, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the expected value at each rank: within equal scores, their mean."""
    sizes = np.diff(np.append(query.runs, len(values)))
    means: npt.NDArray[np.float64] = np.repeat(np.add.reduceat(values, query.runs, dtype=np.float64) / sizes, sizes)
    return means


def _ndcg(query: _Query) -> float | None:
    """Return nDCG@10 of one query; None if no candidate has a gain."""
    ideal = _dcg(np.sort(query.gains)[::-1])
    return _dcg(_expected(query, query.gains)) / ideal if ideal > 0 else None


def _reciprocal_rank(query: _Query) -> float:
    """Return the expected MRR@10 of one query with relevant candidates.

    The first relevant ones are in one run of n equal scores, r of them relevant; the first of r is at the place j of n,
    from 0, with the probability C(n - 1 - j, r - 1) / C(n, r).
    """
    first = int(np.flatnonzero(query.exact)[0])
    at = int(np.searchsorted(query.runs, first, side="right")) - 1
    begin, *rest = query.runs[at : at + 2].tolist()
    of_run = query.exact[begin : rest[0] if rest else len(query.exact)]
    n, r = len(of_run), int(of_run.sum())
    ranks = range(begin, min(begin + n - r + 1, CUT))
    return sum(math.comb(n - 1 - (rank - begin), r - 1) / math.comb(n, r) / (rank + 1) for rank in ranks)


def _rows_by_query(queries: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp]]:
    order = np.argsort(queries, kind="stable")
    starts = np.flatnonzero(np.diff(queries[order])) + 1
    return [rows for rows in np.split(order, starts) if len(rows)]


def _f1(hits: npt.NDArray[Any], size: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return F1 by class, 0 for one that neither labels nor predictions have. size: how many do, counted together."""
    found: npt.NDArray[np.float64] = 2.0 * hits / np.maximum(size, 1)
    return found


def _dcg(gains: npt.NDArray[np.float64]) -> float:
    return float((gains[:CUT] * ndcg_weights(len(gains))).sum())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
