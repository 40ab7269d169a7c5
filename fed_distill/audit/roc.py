"""How well a score separates members from non-members: ROC, AUC, and true-positive rates at low false-positive rates.

An attack that identifies a few members with certainty is more harmful than one that is slightly better than chance for
all, so the rates at 1 % and 0.1 % false positives are reported beside the AUC (Carlini et al., "Membership inference
attacks from first principles", S&P 2022, section IV). Higher scores always mean "member".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm, rankdata

from fed_distill.errors import DataError

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]

FALSE_POSITIVE_RATES = (0.01, 0.001)
"""False-positive rates at which the true-positive rate is reported."""
CURVE_RATES = (0.0, *(float(f"{rate:.3g}") for rate in np.logspace(-4, 0, 41)))
"""False-positive rates of a stored ROC curve: 0, then ten per decade from 0.0001 to 1."""


@dataclass(frozen=True)
class Rate:
    """A true-positive rate with its Clopper-Pearson interval, and its number of false positives.

    The interval is exact for a fixed threshold; it ignores the sampling of the non-members.
    """

    value: float
    interval: Interval
    false_positives: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return {"value": self.value, "interval": list(self.interval), "false_positives": self.false_positives}


@dataclass(frozen=True)
class Separation:
    """Separation of members from non-members by one score.

    auc: probability that a random member has a higher score than a random non-member, with ties as 1/2. auc_interval:
    at ``confidence``. true_positive_rates: by false-positive rate. curve: true-positive rates at ``CURVE_RATES``.
    """

    members: int
    nonmembers: int
    auc: float
    auc_interval: Interval
    true_positive_rates: Mapping[float, Rate]
    curve: tuple[float, ...]
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form; the curve is two lists of rates."""
        return {
            "members": self.members,
            "nonmembers": self.nonmembers,
            "auc": self.auc,
            "auc_interval": list(self.auc_interval),
            "tpr": {f"{rate:g}": found.to_json() for rate, found in self.true_positive_rates.items()},
            "curve": {"fpr": list(CURVE_RATES), "tpr": list(self.curve)},
            "confidence": self.confidence,
        }


def separation(members: FloatArray, nonmembers: FloatArray, confidence: float = 0.95) -> Separation:
    """Compare the scores of ``members`` ``[m]`` with those of ``nonmembers`` ``[n]``.

    :raises DataError: there are fewer than two of either, or a score is not finite
    """
    _check(members, nonmembers)
    area, interval = auc_with_interval(members, nonmembers, confidence)
    rates = {}
    for wanted in FALSE_POSITIVE_RATES:
        detected, mistakes = detections(members, nonmembers, wanted)
        rates[wanted] = Rate(detected / len(members), clopper_pearson(detected, len(members), confidence), mistakes)
    curve = tuple(detections(members, nonmembers, rate)[0] / len(members) for rate in CURVE_RATES)
    return Separation(len(members), len(nonmembers), area, interval, rates, curve, confidence)


def auc_with_interval(members: FloatArray, nonmembers: FloatArray, confidence: float) -> tuple[float, Interval]:
    """Return the Mann-Whitney AUC and its interval (DeLong et al. 1988, by ranks as in Sun and Xu 2014) within [0, 1].

    Examples are assumed to be independent. With perfect separation the interval has width 0.
    """
    count, others = len(members), len(nonmembers)
    ranks = rankdata(np.concatenate([members, nonmembers]))
    above = (ranks[:count] - rankdata(members)) / others
    below = 1.0 - (ranks[count:] - rankdata(nonmembers)) / count
    area = float(above.mean())
    deviation = math.sqrt(float(above.var(ddof=1)) / count + float(below.var(ddof=1)) / others)
    reach = float(norm.ppf(0.5 + confidence / 2)) * deviation
    return area, (max(area - reach, 0.0), min(area + reach, 1.0))


def detections(members: FloatArray, nonmembers: FloatArray, false_positive_rate: float) -> tuple[int, int]:
    """Count members and non-members above the lowest threshold with at most this false-positive rate.

    There is no interpolation: with fewer than 1,000 non-members, a rate of 0.1 % allows no false positive.
    """
    allowed = math.floor(false_positive_rate * len(nonmembers) + 1e-9)
    if allowed >= len(nonmembers):
        return len(members), len(nonmembers)
    threshold = np.sort(nonmembers)[len(nonmembers) - 1 - allowed]
    return int((members > threshold).sum()), int((nonmembers > threshold).sum())


def clopper_pearson(successes: int, trials: int, confidence: float) -> Interval:
    """Return the exact two-sided interval of a binomial share (Clopper and Pearson 1934)."""
    tail = (1.0 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1.0 - tail, successes + 1, trials - successes))
    return low, high


def _check(members: FloatArray, nonmembers: FloatArray) -> None:
    for name, scores in (("members", members), ("non-members", nonmembers)):
        if len(scores) < 2:
            raise DataError(f"an attack requires at least two {name}, not {len(scores)}")
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise DataError(f"the attack's score of row {row} of the {name} is {scores[row]}")
