"""Metrics and statistics, as pure functions of predictions and numbers.

Classification metrics are scikit-learn's. The ranking metrics follow the KDD Cup 2022 on shopping queries (Reddy et al.
2022, ESCI): nDCG at 10 with linear gains.
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
"""Values by metric name; None if the metric is undefined (no example, one class only)."""

CUT = 10
SCORES = ("accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10")
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
    positive = labels == task.positive_index
    both = bool(positive.any()) and not bool(positive.all())
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro")),
        "auc": float(roc_auc_score(positive, values[:, task.positive_index])) if both else None,
        "n": len(labels),
    }


def ranking(probabilities: npt.NDArray[np.floating], ranking: Ranking, task: Task) -> Metrics:
    """Compute mean nDCG@10 and MRR@10 over queries; candidates are ranked by expected gain, ``sum_c p_c * gain_c``.

    nDCG@10 has the gains of the true grades, the discount 1/log2(rank + 1) and the ideal order over all candidates of a
    query; queries with no gain are skipped and counted in ``skipped_queries``. For MRR@10, candidates of the positive
    class are relevant, ranks beyond 10 give 0, and queries without a relevant candidate are skipped. Ties are ranked in
    order of increasing gain, so that constant predictions do not profit from the stored order.

    :param probabilities: class probabilities ``[n, classes]``, aligned with ``ranking.examples``
    :param ranking: queries and candidates
    :param task: a task with gains
    :raises TrainingError: a probability is not finite
    :raises DataError: the task has no gains
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


def headline(metrics: Mapping[str, float | None], task: Task) -> float | None:
    """Return the metric used in comparisons; raise DataError if it was not computed."""
    if task.headline not in metrics:
        raise DataError(
            f"{task.headline} of task {task.name!r} was not computed: the dataset has no ranking view for this task"
        )
    return metrics[task.headline]


def retention(student: float | None, teacher: float | None) -> float | None:
    """Return student / teacher on one metric; None if either is unknown or the teacher's is 0."""
    if student is None or not teacher:
        return None
    return student / teacher


@dataclass(frozen=True)
class GapClosed:
    """The share of the gain from pooling that federation achieves.

    value: 1 is as good as pooling, negative is worse than the best baseline; None if undefined. reason: why it is
    undefined.
    """

    value: float | None
    reason: str = ""


def gap_closed(student: float | None, server: float | None, local: float | None, pooled: float | None) -> GapClosed:
    """Return (student - baseline) / (pooled - baseline) on one metric, where baseline = max(server, local)."""
    if student is None or server is None or local is None or pooled is None:
        return GapClosed(None, "needs the student and the controls server, local and pooled on the same metric")
    base = max(server, local)
    if pooled <= base:
        better = "the server alone" if server >= local else "each merchant alone"
        return GapClosed(None, f"pooling all data ({pooled:.4f}) is no better than {better} ({base:.4f})")
    return GapClosed((student - base) / (pooled - base))


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """Return the mean and the half-width of its Student-t interval; the half-width is None for a single value."""
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
    """Return the merchant with the lowest accuracy; ties are broken by name.

    :param accuracies: accuracy by merchant
    :param counts: number of test examples by merchant
    :param minimum: ignore merchants with fewer test examples, whose accuracies are noisy, unless all have fewer
    :returns: None without merchants
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
