"""How far the traffic of a sliding window is from the reference of the student: the population stability index.

PSI of the shares ``e`` of the reference and ``a`` of the window is ``sum_i (a_i - e_i) ln(a_i / e_i)``: Jeffreys'
divergence, the symmetric sum of both Kullback-Leibler divergences (Kullback and Leibler, "On information and
sufficiency", Ann. Math. Statist. 1951, eq. 2.6). Rules of thumb, from credit scoring: below 0.1 no change, above 0.25 a
shift that calls for action (Siddiqi, "Credit Risk Scorecards", 2006). They do not depend on the number of values, and
PSI does: without any change it has about the distribution of ``(1/n + 1/m) chi2(bins - 1)`` for ``n`` and ``m``
independent values (Yurdakul and Naranjo, "Statistical properties of the population stability index", J. Risk Model
Validation 2020). With ten bins and ``MINIMUM`` values against a large reference, its mean is 0.018 and it exceeds 0.056
once in a thousand times.
"""

import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fed_distill.serving.reference import Counts, Histogram

MINIMUM = 500
"""Values in the window below which there is no index."""
MINIMUM_REFERENCE = 200
"""Values in the reference below which there is none: its own noise then stays below 0.2, once in a thousand aside."""
SLOTS = 10
"""Parts of a window, by which the oldest values leave it."""
_PRIOR = 0.5
"""Added to each count, so that an empty bin has a share: the mean under Jeffreys' prior (Krichevsky and Trofimov, "The
performance of universal encoding", IEEE Trans. Inf. Theory 1981)."""


class Drift(NamedTuple):
    """Drift of one histogram.

    values: values in the window. psi: the index; None if they are fewer than ``MINIMUM``, those of the reference fewer
    than ``MINIMUM_REFERENCE``, or the reference has one bin.
    """

    values: int
    psi: float | None


def psi(expected: npt.ArrayLike, actual: npt.ArrayLike) -> float:
    """Return the population stability index of two histograms with the same bins.

    :param expected: counts of the reference, ``[bins]``
    :param actual: counts to compare, ``[bins]``
    """
    shares = [
        (counts + _PRIOR) / (counts.sum() + _PRIOR * len(counts)) for counts in map(np.asarray, (expected, actual))
    ]
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


class SlidingCounts:
    """Counts of the last ``seconds``, which leave it in ``SLOTS`` parts: at any time, those of the last 9 to 10 parts.
    For one thread."""

    def __init__(self, bins: int, seconds: float) -> None:
        self._part = seconds / SLOTS
        self._counts = np.zeros((SLOTS, bins), dtype=np.int64)
        self._latest = 0

    def add(self, places: Counts, now: float) -> None:
        """Count the bins of new values. now: seconds of a monotonic clock."""
        self._forget(now)
        self._counts[self._latest % SLOTS] += np.bincount(places, minlength=self._counts.shape[1])

    def total(self, now: float) -> Counts:
        """Return the counts, int64 ``[bins]``."""
        self._forget(now)
        found: Counts = self._counts.sum(axis=0)
        return found

    def _forget(self, now: float) -> None:
        current = int(now / self._part)
        for part in range(max(self._latest + 1, current - SLOTS + 1), current + 1):
            self._counts[part % SLOTS] = 0
        self._latest = max(self._latest, current)


class DriftWindow:
    """Histograms of what a student was asked and gave, beside those of its reference. For any number of threads."""

    def __init__(self, reference: Mapping[str, Histogram], seconds: float) -> None:
        """reference: histograms by name. seconds: length of the window."""
        self._reference = reference
        self._counts = {name: SlidingCounts(len(one.counts), seconds) for name, one in reference.items()}
        self._lock = threading.Lock()

    def add(self, values: Mapping[str, npt.ArrayLike], now: float) -> None:
        """Count values ``[n]`` by name; names that the reference does not have are left out."""
        places = {
            name: self._reference[name].places(found) for name, found in values.items() if name in self._reference
        }
        with self._lock:
            for name, found in places.items():
                self._counts[name].add(found, now)

    def drift(self, now: float) -> dict[str, Drift]:
        """Return the drift of each histogram."""
        with self._lock:
            totals = {name: counts.total(now) for name, counts in self._counts.items()}
        return {name: _drift(self._reference[name], counts) for name, counts in totals.items()}


def _drift(reference: Histogram, counts: Counts) -> Drift:
    values = int(counts.sum())
    enough = values >= MINIMUM and sum(reference.counts) >= MINIMUM_REFERENCE and len(reference.counts) > 1
    return Drift(values, psi(reference.counts, counts) if enough else None)
