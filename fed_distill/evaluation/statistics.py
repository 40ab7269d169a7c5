"""Intervals and paired tests of a mean score over data seeds, training seeds and test data.

A score has three sources of chance. A data seed draws the split, and with it the test data; a training seed draws
initial weights, batches and cohorts; a test unit, which is a query of a ranking, a block of a campaign's customers or
else a group of examples, is drawn from all that customers could have asked, done or written. Units are nested in data
seeds and crossed with training seeds, because all students of one data seed are tested on the same units.

With several data seeds the standard error is that of the hierarchical bootstrap that resamples data seeds and keeps
what is within them (Davison and Hinkley 1997, section 3.8, strategy 1): the means of data seeds differ by everything
that is drawn within one, so that resampling there too would count it twice. A mean is linear in the scores, so its
variance over *all* resamples has a closed form (the ideal bootstrap of Efron and Tibshirani 1993, section 6.2), here
rescaled by n / (n - 1) (Rao and Wu, JASA 1988), and the quantile is Student's with n - 1 degrees of freedom: the
t-interval of the means. Splits of one table share most of their training rows and some of their test rows. Their
variance is therefore increased from s² / n to s² (1 / n + test rows / training rows) (Nadeau and Bengio, Machine
Learning 2003). Where all data seeds have the same test rows, as in a split by time, their means do not have the chance
of these rows: the variance of the mean over units, of one data seed, is added. By simulation such an interval over
three splits covers the truth in 95 % where only the choice of test rows moves the score, and in 90 % where that of
training rows moves it as much.

With one data seed, training seeds and units are the two factors of a crossed design: the variance is that of the means
of training seeds, plus that of the means of units, minus the interaction, which is in both (Searle, Casella and
McCulloch 1992, chapter 4). The quantile has Satterthwaite's degrees of freedom; as these are too many where two seeds
agree by chance, no interval is narrower than that of one factor alone with its own. A level with a single unit
contributes nothing: the interval then says nothing about it, and ``Estimate.covers`` does not list it.
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

ROUNDING = 1e-12
"""Standard errors and differences up to this size are rounding errors."""

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


def estimate(sample: Sample, shared: float = 0.0, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean over data seeds of the mean over training seeds and test units.

    :param sample: scores
    :param shared: number of test rows divided by that of training rows, if data seeds split the same rows; 0 if each
        has rows of its own, infinity if all have the same test rows
    :param confidence: of the interval
    :raises ValueError: there is no score, or one is not finite
    """
    value = _mean(sample)
    parts = _over_data_seeds(sample, shared) if len(sample) > 1 else _crossed(sample[0])
    if not parts:
        return Estimate(value, None, None, (), None)
    covers = tuple(level for level, count in zip(LEVELS, _units(sample), strict=True) if count > 1)
    variance = parts[0][0]
    if variance <= ROUNDING**2:  # a test needs spread, unless there is no difference at all
        return Estimate(value, 0.0, 0.0, covers, None if abs(value) > ROUNDING else 1.0)
    errors = [(math.sqrt(part), degrees) for part, degrees in parts if part > 0.0]
    half = max(float(stdtrit(degrees, 0.5 + confidence / 2)) * error for error, degrees in errors)
    p_value = max(2.0 * float(stdtr(degrees, -abs(value) / error)) for error, degrees in errors)
    return Estimate(value, math.sqrt(variance), half, covers, p_value)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of independent values and the half-width of its 95 % t-interval; None for a single value.

    :raises ValueError: there is no value, or one is not finite
    """
    found = estimate([np.array(values, dtype=np.float64)[:, None]])
    return found.value, found.half_width


def difference(ours: Sample, theirs: Sample) -> Sample:
    """Return the paired difference ``ours - theirs`` of two rows measured on equal seeds and test units.

    :raises ValueError: the rows have different shapes, so that they cannot be paired
    """
    shapes = [[part.shape for part in sample] for sample in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"scores of shapes {shapes[0]} and {shapes[1]} cannot be paired")
    return [own - other for own, other in zip(ours, theirs, strict=True)]


def ratio(numerator: Sample, denominator: Sample, shared: float = 0.0) -> Estimate:
    """Estimate the ratio of two means R = mean(numerator) / mean(denominator), paired.

    The interval is that of mean(numerator - R denominator) / mean(denominator), the linearization for ratios (Cochran
    1977, section 6.3), which holds for a denominator that is clear of noise. p_value is None, since a ratio of zero
    is a numerator of zero: test that. shared: as of ``estimate``.
    """
    bottom = _mean(denominator)
    value = _mean(numerator) / bottom
    residual = estimate(
        difference([part / bottom for part in numerator], [part * value / bottom for part in denominator]), shared
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


def _over_data_seeds(sample: Sample, shared: float) -> list[tuple[float, float]]:
    """Return the variance of the mean over data seeds and its degrees of freedom, then those of its parts.

    shared: as of ``estimate``.
    """
    means = [part.mean() for part in sample]
    if not math.isinf(shared):
        return [_between(means, shared)]
    units = [_between(part.mean(axis=0)) for part in sample if part.shape[1] > 1]
    parts = [_between(means)]
    if units:
        parts.append((float(np.mean([part for part, _ in units])), float(np.mean([free for _, free in units]))))
    return _with_total(parts)


def _with_total(parts: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Prepend the sum of variances with Satterthwaite's degrees of freedom."""
    spread = sum(part**2 / degrees for part, degrees in parts)
    total = sum(part for part, _ in parts)
    return [(total, total**2 / spread if spread else parts[0][1]), *parts]


def _crossed(scores: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return the variance of the mean of ``[training seeds, units]`` and its degrees of freedom, then those due to each
    factor alone; empty for a single score."""
    rows, columns = scores.mean(axis=1), scores.mean(axis=0)
    factors = [_between(means) for means in (rows, columns) if len(means) > 1]
    if len(factors) < 2:
        return factors
    left = scores - rows[:, None] - columns[None, :] + scores.mean()
    free = float((len(rows) - 1) * (len(columns) - 1))
    interaction = float((left**2).sum()) / free / scores.size
    variance = max(sum(part for part, _ in factors) - interaction, *(part for part, _ in factors))
    spread = sum(part**2 / degrees for part, degrees in [*factors, (interaction, free)])
    return [(variance, variance**2 / spread if spread else free), *factors]


def _between(means: Sequence[float] | npt.NDArray[np.float64], shared: float = 0.0) -> tuple[float, float]:
    """Return the variance of the mean of units, and its degrees of freedom. shared: as of ``estimate``."""
    return float(np.var(means, ddof=1)) * (1 / len(means) + shared), float(len(means) - 1)
