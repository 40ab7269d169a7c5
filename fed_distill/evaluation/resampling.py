"""The headline metric on resampled data, so that the difference of two students has a standard error.

Queries, groups of examples or customers are drawn with replacement, for all students alike (paired bootstrap; Efron and
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
    """A student's score, and its ``resamples``: its scores on resampled data ``[REPEATS]``, nan where undefined, of
    ``units`` queries, groups or customers each."""

    value: float
    resamples: Floats
    units: int

    def standard_error(self, other: "Resampled") -> float:
        """Return the standard error of the difference of both scores, of the same data; infinite if there are fewer
        than two units, or the difference is defined in fewer than two resamples."""
        differences = self.resamples - other.resamples
        if self.units < 2 or np.isfinite(differences).sum() < 2:
            return float("inf")
        return float(np.nanstd(differences, ddof=1))


def resampled(statistic: Callable[[Floats], float], units: Sequence[int] | npt.NDArray[np.int64]) -> Resampled:
    """Return ``statistic`` of all rows, and of resamples that are the same in every call with these units.

    :param statistic: returns the score for how often each row counts, float64 ``[n]``
    :param units: number of the unit of each row, such as its customer ``[n]``; a unit's rows are drawn together
    """
    distinct, of_row = np.unique(units, return_inverse=True)
    count, rng = len(distinct), numpy_stream(0, "resampling")
    draws = (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(REPEATS))
    resamples = np.array([statistic(times[of_row].astype(np.float64)) for times in draws])
    return Resampled(statistic(np.ones(len(of_row))), resamples, count)


def mean_of(values: Sequence[float]) -> Callable[[Floats], float]:
    """Return the mean of ``values`` ``[n]`` as a statistic, such as nDCG@10 of nDCG@10 by query."""
    array = np.asarray(values, dtype=np.float64)
    return lambda times: float(times @ array / times.sum())


def macro_f1_of(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> Callable[[Floats], float]:
    """Return macro-F1 as a statistic, the mean over classes that occur in labels or predictions.

    :param probabilities: class probabilities ``[n, classes]``
    :param labels: class indices ``[n]``
    """
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)
    right = predicted == labels

    def macro_f1(times: Floats) -> float:
        hits = np.bincount(labels[right], times[right], classes)
        of_class = np.bincount(labels, times, classes) + np.bincount(predicted, times, classes)
        occurs = of_class > 0
        return float(np.mean(2.0 * hits[occurs] / of_class[occurs]))

    return macro_f1


def qini_of_trial(probabilities: npt.NDArray[np.floating], trial: Trial) -> Callable[[Floats], float]:
    """Return the Qini coefficient as a statistic; nan for a resample of one arm.

    :param probabilities: of the cells ``[n, 4]``
    """
    scores = effects(probabilities)

    def of_draw(times: Floats) -> float:
        treated = trial.treated[times > 0]
        both = bool(treated.any()) and not bool(treated.all())
        return qini(Totals.of(scores, trial, times)) if both else float("nan")

    return of_draw
