"""How good a model is and how good a comparison is, as pure functions of predictions and of numbers.

Classification goes through scikit-learn; the ranking view follows the KDD Cup 2022 on shopping queries
(Reddy et al. 2022, ESCI): nDCG with gains linear in the task's, cut at ten.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit
from sklearn.metrics import classification_report as sklearn_report
from sklearn.metrics import f1_score, roc_auc_score

from fed_distill.data.examples import Ranking, Task
from fed_distill.errors import DataError, TrainingError

Metrics = dict[str, float | None]
"""Metric name -> value; None where the metric is not defined (no example, one class only)."""

CUT = 10
SCORES = ("accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10")
"""The metrics that are compared; what else is in ``Metrics`` are counts."""


def classification(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task) -> Metrics:
    """Accuracy, macro-F1 and the AUC of the positive class against the rest.

    probabilities: ``[n, classes]``. labels: ``[n]``, all known. macro_f1 is the mean over the classes that occur
    in the labels or among the predictions (scikit-learn's convention), so a class that a merchant never sees
    does not count as an F1 of 0. auc is None where only one side of it occurs; everything is None for n = 0.
    Raises TrainingError if a probability is not finite.
    """
    values = _checked(probabilities, len(labels), task)
    if len(labels) == 0:
        return {"accuracy": None, "macro_f1": None, "auc": None, "n": 0}
    if labels.min() < 0 or labels.max() >= len(task.classes):
        raise DataError(f"a test label of task {task.name!r} is not one of its {len(task.classes)} classes")
    predicted = values.argmax(axis=1)
    positive = labels == task.positive_index
    both = bool(positive.any()) and not bool(positive.all())
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "auc": float(roc_auc_score(positive, values[:, task.positive_index])) if both else None,
        "n": len(labels),
    }


def ranking(probabilities: npt.NDArray[np.floating], ranking: Ranking, task: Task) -> Metrics:
    """Mean nDCG@10 and MRR@10 over queries whose candidates are ordered by expected gain, ``sum_c p_c * gain_c``.

    probabilities: ``[n, classes]``, row-aligned with ``ranking.examples``. nDCG@10: gains of the true grades,
    discount 1/log2(rank + 1), ideal order over all of a query's candidates; queries whose candidates all have
    gain 0 are skipped and counted in ``skipped_queries``. MRR@10: a candidate of the positive class is relevant,
    0 beyond rank 10; over the queries that have one. Tied candidates are placed with the smaller gain first, so
    a model that cannot tell them apart earns nothing by the order in which they were stored.
    Raises TrainingError if a probability is not finite.
    """
    if task.gains is None:
        raise DataError(f"task {task.name!r} has no gains, so it has no ranking view")
    values = _checked(probabilities, len(ranking.examples), task)
    gains_of_classes = np.asarray(task.gains, dtype=np.float64)
    labels = ranking.examples.labels
    gains = gains_of_classes[labels]
    scores = values @ gains_of_classes
    ndcg: list[float] = []
    reciprocal: list[float] = []
    skipped = 0
    for rows in _rows_by_query(ranking.queries):
        order = rows[np.lexsort((gains[rows], -scores[rows]))]
        ideal = _dcg(np.sort(gains[rows])[::-1])
        if ideal > 0:
            ndcg.append(_dcg(gains[order]) / ideal)
        else:
            skipped += 1
        exact = np.flatnonzero(labels[order] == task.positive_index)
        if len(exact):
            reciprocal.append(1.0 / (exact[0] + 1) if exact[0] < CUT else 0.0)
    return {
        "ndcg@10": _mean(ndcg),
        "mrr@10": _mean(reciprocal),
        "queries": len(ndcg),
        "skipped_queries": skipped,
    }


def classification_report(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], task: Task) -> str:
    """Precision, recall and F1 of each class as scikit-learn's text table; all the task's classes are listed."""
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


def headline(metrics: Mapping[str, float | None], task: Task) -> float | None:
    """The metric that comparisons are made on; DataError if it was never computed."""
    if task.headline not in metrics:
        raise DataError(
            f"{task.headline} of task {task.name!r} was not measured: the dataset gives the task no ranking view"
        )
    return metrics[task.headline]


def retention(student: float | None, teacher: float | None) -> float | None:
    """Student divided by teacher on one metric; None if either is unknown or the teacher's is 0."""
    if student is None or not teacher:
        return None
    return student / teacher


@dataclass(frozen=True)
class GapClosed:
    """value: share of what the merchants' data is worth that was had without moving it; 1 is as good as pooling,
    negative is worse than not federating. None where the share is not defined, and then ``reason`` says why."""

    value: float | None
    reason: str = ""


def gap_closed(student: float | None, server: float | None, local: float | None, pooled: float | None) -> GapClosed:
    """(student - best of server and local) / (pooled - best of server and local), on one metric."""
    if student is None or server is None or local is None or pooled is None:
        return GapClosed(None, "needs the student and the controls server, local and pooled on the same metric")
    base = max(server, local)
    if pooled <= base:
        better = "the server alone" if server >= local else "each merchant alone"
        return GapClosed(None, f"pooling all data ({pooled:.4f}) is no better than {better} ({base:.4f})")
    return GapClosed((student - base) / (pooled - base))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """Mean and half-width of its Student-t interval; the half-width of one value is None."""
    if not values:
        raise ValueError("an interval needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return mean, None
    quantile = float(stdtrit(len(array) - 1, 0.5 + confidence / 2))
    return mean, quantile * float(array.std(ddof=1)) / math.sqrt(len(array))


@dataclass(frozen=True)
class MerchantAccuracy:
    """One merchant's accuracy on its own test set of ``examples`` rows."""

    merchant: str
    accuracy: float
    examples: int


def worst_merchant(
    accuracies: Mapping[str, float], counts: Mapping[str, int], minimum: int = 20
) -> MerchantAccuracy | None:
    """The merchant served worst, among those with at least ``minimum`` test examples (all, if none has).

    The accuracy on a handful of examples says little, hence the minimum. Equals are told apart by name; None
    if there is no merchant.
    """
    enough = [name for name in accuracies if counts[name] >= minimum] or list(accuracies)
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


def _rows_by_query(queries: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp]]:
    order = np.argsort(queries, kind="stable")
    starts = np.flatnonzero(np.diff(queries[order])) + 1
    return [rows for rows in np.split(order, starts) if len(rows)]


def _dcg(gains: npt.NDArray[np.float64]) -> float:
    top = gains[:CUT]
    return float((top / np.log2(np.arange(len(top)) + 2)).sum())


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
