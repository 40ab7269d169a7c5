"""Ratios of a student's score to what it is measured by: retention of the teacher, and the gap closed to pooling.

A ratio means nothing where its denominator is noise: with pooling worth 0.0004 more than the server alone, a gain of
0.0018 "closes 450 % of the gap". Both are therefore undefined, with a reason, unless their denominator is clear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fed_distill.data.examples import Ranking, Task
from fed_distill.evaluation.metrics import CUT, Metrics, ndcg_weights
from fed_distill.evaluation.statistics import Sample, difference, estimate, ratio

YARDSTICKS = ("server", "local", "pooled")
"""The controls that define the gap."""
AT_CHANCE = "the teacher ("
"""How the reason begins that a teacher at or below chance has no retention."""


@dataclass(frozen=True)
class Share:
    """A ratio with the half-width of its interval, if it has one. reason: why value is None."""

    value: float | None
    half_width: float | None = None
    reason: str = ""


def gap_closed(student: Sample | None, controls: Mapping[str, Sample | None], shared: float = 0.0) -> Share:
    """Return (student - baseline) / (pooled - baseline), paired, with the better of server and local as baseline.

    1 is as good as pooling, negative is worse than the baseline. Undefined unless pooled - baseline is at least two
    half-widths of its interval above zero (``Estimate.is_clear``).

    :param student: the student's scores
    :param controls: scores of ``YARDSTICKS`` on the same seeds and test data
    :param shared: of data seeds, see ``statistics.estimate``
    """
    server, local, pooled = (controls.get(name) for name in YARDSTICKS)
    if student is None or server is None or local is None or pooled is None:
        return Share(None, reason="needs the student and the controls server, local and pooled on the same metric")
    levels = [estimate(one).value for one in (server, local, pooled)]
    base, name = (server, "the server alone") if levels[0] >= levels[1] else (local, "each merchant alone")
    gap = difference(pooled, base)
    found = estimate(gap, shared)
    texts = f"pooling all data ({levels[2]:.4f})", f"{name} ({max(levels[:2]):.4f})"
    if found.value <= 0:
        return Share(None, reason=f"{texts[0]} is no better than {texts[1]}")
    if found.half_width is None:
        return Share(None, reason=f"with one seed it is unknown whether {texts[0]} is better than {texts[1]}")
    if not found.is_clear:
        return Share(
            None,
            reason=f"{texts[0]} is not clearly better than {texts[1]}: the difference is {found.value:.4f} ± "
            f"{found.half_width:.4f}",
        )
    share = ratio(difference(student, base), gap, shared)
    return Share(share.value, share.half_width)


def retention(student: Sample | None, teacher: float | None, chance: float | None) -> Share:
    """Return student / teacher on one metric; undefined unless the teacher is better than chance.

    The teacher's score is taken as it is: the interval has the student's chance alone.

    :param student: the student's scores
    :param teacher: the teacher's score
    :param chance: the score of a model that has learned nothing; None if unknown, which is taken to be 0
    """
    if student is None or teacher is None:
        return Share(None, reason="needs the student and the teacher on the same metric")
    if teacher <= (chance or 0.0):
        return Share(None, reason=f"{AT_CHANCE}{teacher:.4f}) is no better than chance ({chance or 0.0:.4f})")
    found = estimate([part / teacher for part in student])
    return Share(found.value, found.half_width)


def chance_scores(labels: Sequence[int], ranking: Ranking | None, task: Task) -> Metrics:
    """Return the scores of a model that has learned nothing.

    accuracy and macro_f1 are those of the best constant prediction, auc is 1/2, and ndcg@10 is its expectation over
    random orders of the candidates, in which each rank has their mean gain. qini is 0, by its definition.

    :param labels: class indices of the test set ``[n]``
    :param ranking: the test's ranking view, if there is one
    :param task: the task
    """
    shares = np.bincount(labels, minlength=len(task.classes)) / max(1, len(labels))
    most, classes = float(shares.max()), int((shares > 0).sum())
    found: Metrics = {"accuracy": most, "macro_f1": 2 * most / (1 + most) / max(1, classes), "auc": 0.5}
    if task.of_campaigns:
        found["qini"] = 0.0
    if ranking is not None and task.gains is not None:
        gains = np.asarray(task.gains)[ranking.examples.labels]
        by_query = [gains[ranking.queries == query] for query in np.unique(ranking.queries)]
        expected = [
            float(own.mean() * weights.sum() / (np.sort(own)[::-1][:CUT] * weights).sum())
            for own in by_query
            if own.max() > 0
            for weights in (ndcg_weights(len(own)),)
        ]
        found["ndcg@10"] = float(np.mean(expected)) if expected else None
    return found
