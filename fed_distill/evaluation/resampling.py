"""The headline metric on resampled data, so that the difference of two students has a standard error.

Queries, examples or customers are drawn with replacement, for all students alike (paired bootstrap; Efron and
Tibshirani 1993, chapter 8).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fed_distill.data.campaign_cells import effects
from fed_distill.evaluation.uplift import Totals, Trial, qini
from fed_distill.seeds import numpy_stream

Floats = npt.NDArray[np.float64]
REPEATS = 200
"""Number of resamples, enough for a standard error (Efron and Tibshirani 1993, section 6.4)."""


@dataclass(frozen=True)
class Resampled:
    """A student's score, and its ``resamples``: its scores on resampled data ``[REPEATS]``, nan where undefined."""

    value: float
    resamples: Floats

    def standard_error(self, other: "Resampled") -> float:
        """Return the standard error of the difference of both scores, of the same data."""
        return float(np.nanstd(self.resamples - other.resamples, ddof=1))


def resampled(statistic: Callable[[Floats], float], units: Sequence[int] | npt.NDArray[np.int64]) -> Resampled:
    """Return ``statistic`` of all rows, and of resamples that are the same in every call with these units.

    :param statistic: returns the score for how often each row counts, float64 ``[n]``
    :param units: number of the unit of each row, such as its customer ``[n]``; a unit's rows are drawn together
    """
    distinct, of_row = np.unique(units, return_inverse=True)
    share = np.full(len(distinct), 1.0 / len(distinct))
    rng = numpy_stream(0, "resampling")
    times = (rng.multinomial(len(distinct), share)[of_row].astype(np.float64) for _ in range(REPEATS))
    return Resampled(statistic(np.ones(len(of_row))), np.array([statistic(drawn) for drawn in times]))


def mean_of(values: Sequence[float]) -> Callable[[Floats], float]:
    """Return the mean of ``values`` ``[n]`` as a statistic, such as nDCG@10 of nDCG@10 by query."""
    array = np.asarray(values, dtype=np.float64)
    return lambda times: float(times @ array / times.sum())


def macro_f1_of(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> Callable[[Floats], float]:
    """Return macro-F1 as a statistic, the mean over classes that occur in labels or predictions.

    :param probabilities: class probabilities ``[n, classes]``
    :param labels: class indices ``[n]``
    """
    classes = probabilities.shape[1]
    cells = labels * classes + probabilities.argmax(axis=1)

    def macro_f1(times: Floats) -> float:
        counts = np.bincount(cells, times, classes**2).reshape(classes, classes)
        of_class = counts.sum(axis=0) + counts.sum(axis=1)
        occurs = of_class > 0
        return float(np.mean(2.0 * np.diag(counts)[occurs] / of_class[occurs]))

    return macro_f1


def qini_of_trial(probabilities: npt.NDArray[np.floating], trial: Trial) -> Callable[[Floats], float]:
    """Return the Qini coefficient as a statistic; nan for a resample of one arm.

    :param probabilities: of the cells ``[n, 4]``
    """
    scores = effects(probabilities)

    def of_draw(times: Floats) -> float:
        arms = {bool(arm) for arm in trial.treated[times > 0]}
        return qini(Totals.of(scores, trial, times)) if len(arms) == 2 else float("nan")

    return of_draw
