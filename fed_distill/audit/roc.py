"""How well a score tells members from non-members: ROC, AUC, and the true-positive rate at few false positives.

An attack that is sure of a few members is worse for them than one that is a little right about all, so the rate at
1 % and 0.1 % false positives is reported beside the AUC (Carlini et al., "Membership inference attacks from first
principles", S&P 2022, sec. IV). A higher score always means "member".
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
"""False-positive rates at which a stored ROC curve is known: 0, then ten a decade from 0.0001 to 1."""


@dataclass(frozen=True)
class Rate:
    """A share of the members with its Clopper-Pearson interval, and how many false positives it was had for.

    The interval is exact for a fixed threshold; the non-members that the threshold is taken from vary too.
    """

    value: float
    interval: Interval
    false_positives: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"value": self.value, "interval": list(self.interval), "false_positives": self.false_positives}


@dataclass(frozen=True)
class Separation:
    """How well one score separates members from non-members.

    auc: probability that a random member scores above a random non-member, ties counting half. auc_interval: at
    ``confidence``. true_positive_rates: by false-positive rate. curve: true-positive rate at each of ``CURVE_RATES``.
    """

    members: int
    nonmembers: int
    auc: float
    auc_interval: Interval
    true_positive_rates: Mapping[float, Rate]
    curve: tuple[float, ...]
    confidence: float

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form; the curve as lists of both rates."""
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
    """Measure the scores of ``members`` ``[m]`` against those of ``nonmembers`` ``[n]``.

    Raises DataError for fewer than two of either, or a score that is not finite.
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
    """The Mann-Whitney AUC and its interval (DeLong et al. 1988, by ranks as in Sun and Xu 2014), cut to [0, 1].

    It takes examples for independent. Where a score separates perfectly the interval has no width.
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
    """(members, non-members) above the lowest threshold that at most that share of the non-members exceeds.

    Nothing is interpolated: with fewer than 1,000 non-members, a rate of 0.1 % allows no false positive at all.
    """
    allowed = math.floor(false_positive_rate * len(nonmembers) + 1e-9)
    if allowed >= len(nonmembers):
        return len(members), len(nonmembers)
    threshold = np.sort(nonmembers)[len(nonmembers) - 1 - allowed]
    return int((members > threshold).sum()), int((nonmembers > threshold).sum())


def clopper_pearson(successes: int, trials: int, confidence: float) -> Interval:
    """The exact two-sided interval of a binomial share (Clopper and Pearson 1934)."""
    tail = (1.0 - confidence) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1.0 - tail, successes + 1, trials - successes))
    return low, high


def _check(members: FloatArray, nonmembers: FloatArray) -> None:
    for name, scores in (("members", members), ("non-members", nonmembers)):
        if len(scores) < 2:
            raise DataError(f"an attack is measured on two {name} at least, not {len(scores)}")
        if not np.isfinite(scores).all():
            row = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise DataError(f"the attack's score of row {row} of the {name} is {scores[row]}")
