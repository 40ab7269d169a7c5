"""Intervals and paired tests of a mean score over data seeds, training seeds and test data.

A score has three sources of chance. A data seed draws the split, and with it the test data; a training seed draws
initial weights, batches and cohorts; a test unit, which is a query of a ranking, a block of a campaign's customers or
else a group of examples, is drawn from all that customers could have asked, done or written. Units are nested in data
seeds and crossed with training seeds, because all students of one data seed are tested on the same units.

The standard error is that of the hierarchical bootstrap: data seeds are resampled, within each of them training seeds
and units (Davison and Hinkley 1997, section 3.8; for crossed factors, the pigeonhole bootstrap of Owen, Annals of
Applied Statistics 2007). A mean is linear in the scores, so its variance over *all* resamples has a closed form (the
ideal bootstrap of Efron and Tibshirani 1993, section 6.2), and none has to be drawn. Two corrections make it hold for
few seeds: deviations at a level of n units are rescaled by sqrt(n / (n - 1)) (Rao and Wu, JASA 1988), without which
the variance over three seeds is a third too small, and quantiles are Student's, with Satterthwaite's degrees of
freedom. As these are too many where two seeds agree by chance, no interval is narrower than that of one level alone
with its own degrees of freedom. A level with a single unit contributes nothing: the interval then says nothing about
it, and ``Estimate.covers`` does not list it.

Data seeds count as independent, which those of a generated marketplace are. Splits of one table share most of their
training rows and some of their test rows (Nadeau and Bengio, Machine Learning 2003). By simulation an interval over
three such splits still covers the truth in 95 % where the choice of training rows moves the score at most half as much
as that of test rows, and in 88 % where both move it alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

Sample = Sequence[npt.NDArray[np.float64]]
"""Scores of one row of a comparison: for each data seed an array ``[training seeds, units]``. A metric without scores
by unit has one column."""
LEVELS = ("data seeds", "training seeds", "test data")
CONFIDENCE = 0.95
CLEAR = 2.0
"""A denominator is clear of noise if it is at least this many half-widths of its 95 % interval above zero."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and its interval ``value`` ± ``half_width``.

    error, half_width: None if no level has two units. covers: the levels with at least two units, whose chance the
    interval includes. p_value: two-sided, of a mean of zero; None without a half-width.
    """

    value: float
    error: float | None
    half_width: float | None
    covers: tuple[str, ...]
    p_value: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the value is so far above zero that it can be a denominator, see ``CLEAR``."""
        return self.half_width is not None and self.value > 0 and self.value >= CLEAR * self.half_width


def estimate(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean over data seeds of the mean over training seeds and test units.

    :param sample: scores
    :param confidence: of the interval
    :raises ValueError: there is no score, or one is not finite
    """
    value = _mean(sample)
    parts = _variances(sample)
    variance = sum(part for part, _ in parts)
    if not parts:
        return Estimate(value, None, None, (), None)
    covers = tuple(level for level, count in zip(LEVELS, _units(sample), strict=True) if count > 1)
    if variance == 0.0:
        return Estimate(value, 0.0, 0.0, covers, 1.0 if value == 0.0 else 0.0)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    errors = [(math.sqrt(part), degrees) for part, degrees in [(variance, freedom), *parts] if part > 0.0]
    half = max(float(stdtrit(degrees, 0.5 + confidence / 2)) * error for error, degrees in errors)
    p_value = max(2.0 * float(stdtr(degrees, -abs(value) / error)) for error, degrees in errors)
    return Estimate(value, math.sqrt(variance), half, covers, p_value)


def difference(ours: Sample, theirs: Sample) -> Sample:
    """Return the paired difference ``ours - theirs`` of two rows measured on equal seeds and test units.

    :raises ValueError: the rows have different shapes, so that they cannot be paired
    """
    shapes = [[part.shape for part in sample] for sample in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"scores of shapes {shapes[0]} and {shapes[1]} cannot be paired")
    return [own - other for own, other in zip(ours, theirs, strict=True)]


def ratio(numerator: Sample, denominator: Sample) -> Estimate:
    """Estimate the ratio of two means R = mean(numerator) / mean(denominator), paired.

    The interval is that of mean(numerator - R denominator) / mean(denominator), the linearization for ratios (Cochran
    1977, section 6.3), which holds for a denominator that is clear of noise. p_value is None, since a ratio of zero
    is a numerator of zero: test that.
    """
    bottom = _mean(denominator)
    value = _mean(numerator) / bottom
    residual = estimate(
        difference([part / bottom for part in numerator], [part * value / bottom for part in denominator])
    )
    return Estimate(value, residual.error, residual.half_width, residual.covers, None)


def pseudo_values(value: float, without: npt.NDArray[np.float64]) -> list[float]:
    """Return a value for each unit whose mean is ``value``, and whose standard error is ``value``'s by the jackknife.

    That of unit g is F - (G - 1) (F_g - mean of all F_g): F is ``value``, F_g the statistic without the unit, and G the
    number of units (Efron and Tibshirani 1993, chapter 11, with F in place of the bias-corrected estimate).

    :param value: a statistic of all units
    :param without: the statistic without each unit ``[units]``
    """
    return [float(one) for one in value - (len(without) - 1) * (without - without.mean())]


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p-values adjusted by Holm's step-down rule (Scandinavian Journal of Statistics 1979), in the given order.

    Comparisons whose adjusted value is at most α are significant with a family-wise error of at most α, however they
    depend on each other.

    :param p_values: the p-values of one family of comparisons
    """
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[key]))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


def shrunk_accuracies(accuracies: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, float]:
    """Shrink merchants' accuracies towards their common mean, the more the fewer test examples a merchant has.

    Empirical Bayes with a beta-binomial model: merchant i of n_i examples has k_i right, its true accuracy is drawn
    from a beta distribution with mean m and intraclass correlation ρ, and its posterior mean is
    (k_i + m M) / (n_i + M) with M = (1 - ρ) / ρ. m is the accuracy over all examples and ρ the moment estimate with
    weights n_i (Kleinman, JASA 1973), cut to [0, 1]; ρ = 0 (merchants do not differ beyond chance) gives m to all.

    :param accuracies: accuracy by merchant, each in [0, 1]
    :param counts: number of test examples by merchant, at least 1
    """
    if not accuracies:
        return {}
    names = list(accuracies)
    n = np.array([counts[name] for name in names], dtype=np.float64)
    found = np.array([accuracies[name] for name in names], dtype=np.float64)
    mean = float((n * found).sum() / n.sum())
    noise = mean * (1.0 - mean)
    free = len(names) - 1
    spread = float(n.sum() - (n**2).sum() / n.sum()) - free
    if noise == 0.0 or spread <= 0.0:  # nothing to shrink, or one example each, which cannot show a correlation
        return dict.fromkeys(names, mean)
    excess = float((n * (found - mean) ** 2).sum()) / noise - free
    correlation = min(1.0, max(0.0, excess / spread))
    weights = n * correlation / (n * correlation + 1.0 - correlation)
    return dict(zip(names, map(float, mean + weights * (found - mean)), strict=True))


def worst_tenth(accuracies: Mapping[str, float], counts: Mapping[str, int]) -> float | None:
    """Return the 10th percentile of ``shrunk_accuracies`` over merchants, which unlike the minimum does not fall with
    the number of merchants or with the smallest one's few examples; None without merchants."""
    shrunk = list(shrunk_accuracies(accuracies, counts).values())
    return float(np.percentile(shrunk, 10)) if shrunk else None


def _units(sample: Sample) -> tuple[int, int, int]:
    """Return the largest number of data seeds, training seeds and test units."""
    return len(sample), max(part.shape[0] for part in sample), max(part.shape[1] for part in sample)


def _mean(sample: Sample) -> float:
    if not sample or any(part.ndim != 2 or part.size == 0 for part in sample):
        raise ValueError("a mean needs at least one score of each data seed, as an array [training seeds, units]")
    if not all(np.isfinite(part).all() for part in sample):
        raise ValueError("a score is not finite")
    return float(np.mean([part.mean() for part in sample]))


def _variances(sample: Sample) -> list[tuple[float, float]]:
    """Return the bootstrap's variance of the mean due to each level with at least two units, and its degrees of
    freedom; training seeds, test units and their interaction are pooled over the data seeds."""
    seeds = len(sample)
    parts = [_between([part.mean() for part in sample])] if seeds > 1 else []
    within: dict[str, list[tuple[float, float]]] = {}
    for part in sample:
        rows, columns = part.mean(axis=1), part.mean(axis=0)
        if len(rows) > 1:
            within.setdefault("training seeds", []).append(_between(rows))
        if len(columns) > 1:
            within.setdefault("units", []).append(_between(columns))
        if min(part.shape) > 1:
            left = part - rows[:, None] - columns[None, :] + part.mean()
            free = float((len(rows) - 1) * (len(columns) - 1))
            within.setdefault("interaction", []).append((float((left**2).sum()) / free / part.size, free))
    return parts + [
        (sum(variance for variance, _ in found) / seeds**2, sum(free for _, free in found)) for found in within.values()
    ]


def _between(means: Sequence[float] | npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the variance of the mean of independent units, and its degrees of freedom."""
    return float(np.var(means, ddof=1)) / len(means), float(len(means) - 1)
