"""White-box audits in one run: canaries with their own coordinates, scored on all releases.

The attacker is the strongest that the accounting permits: it observes every release and knows each canary's
contribution and its time, but not its inclusion. A canary changes one coordinate that nothing else changes, with an
independent sign (+1 or -1) in each release, so that noise shared by two releases is visible in their difference.
Coordinates without canaries give the covariance of the noise over releases, and so reveal noise that is missing, too
small, reused, or predictable by an outsider with the run's seed. Two bounds on epsilon are computed from the scores: by
Steinke, Nasr and Jagielski 2023, and by f-DP of Mahloujifar, Melis and Chaudhuri 2024.

An audit can find faults but cannot exclude them. Each bound holds at the given confidence; at confidence 0.95, at most
one in ten audits of correct training exceeds the guarantee by either bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaln

from fed_distill import seeds
from fed_distill.audit.f_dp import CurveBound, Family, Gaussian, SampledGaussian, best_curve_bound
from fed_distill.audit.membership import BoolArray
from fed_distill.audit.one_run import Bound, best_bound
from fed_distill.audit.roc import FloatArray
from fed_distill.errors import DataError
from fed_distill.mechanisms.account import bounded
from fed_distill.privacy.accounting import Accountant, Spend, epsilon

CANARIES, REFERENCES = 50_000, 4_000
"""Numbers of coordinates with and without a canary."""

GUESS_SHARES = ((0.02, 0.0), (0.25, 0.0), (0.01, 0.01), (0.05, 0.05))
"""Shares of the canaries guessed as included and as excluded. Having been sampled is more informative than not having
been, hence the first two. In addition, all canaries are guessed by the signs of their scores, which detects missing
noise."""

_LIKELY_SHARE, _LIKELY_ERROR = 0.02, 0.7
"""With sampling: the share of canaries guessed as included by the most powerful choice, and its share of the error
probability."""
_RIDGE = 1e-9
_MOST_MIXED = 64


@dataclass(frozen=True)
class WhiteBoxAudit:
    """The result of an audit. unit: privacy unit of the canaries. promised: the accountant's epsilon at the bounds'
    delta, infinite without noise. releases: number of observed releases. steinke, f_dp: the two bounds."""

    unit: str
    promised: float
    releases: int
    steinke: Bound
    f_dp: CurveBound

    @property
    def exceeded(self) -> bool:
        """Whether a bound exceeds the guarantee, which indicates a fault, except in one of ten audits at confidence
        0.95."""
        return max(self.steinke.epsilon, self.f_dp.epsilon) > self.promised

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form; ``promised`` is None without a guarantee."""
        return {
            "unit": self.unit,
            "promised": bounded(self.promised),
            "exceeded": self.exceeded,
            "releases": self.releases,
            "canaries": self.steinke.canaries,
            "delta": self.steinke.delta,
            "confidence": self.steinke.confidence,
            "steinke": self.steinke.to_json(),
            "f_dp": self.f_dp.to_json(),
        }

    def brief(self) -> dict[str, Any]:
        """Return ``to_json`` with the epsilons of the bounds only."""
        return {**self.to_json(), "steinke": self.steinke.epsilon, "f_dp": self.f_dp.epsilon}


@dataclass(frozen=True)
class Canaries:
    """The random draws of an audit. included: inclusion, bool ``[m]``. directions: +1 or -1, ``[releases, m]``, known
    to the attacker."""

    included: BoolArray
    directions: FloatArray

    @classmethod
    def drawn(cls, count: int, releases: int, seed: int) -> "Canaries":
        """Draw independently of all draws of a run; raise DataError for too few canaries."""
        draw = seeds.numpy_stream(seed, "white-box canaries", count, releases)
        included = draw.random(count) < 0.5
        if not 2 <= int(included.sum()) <= count - 2:
            raise DataError(f"{count} canaries are too few for an audit")
        return cls(included, draw.choice(np.array([-1.0, 1.0]), (releases, count)))

    def bounds(
        self,
        unit: str,
        scores: Sequence[FloatArray],
        spends: Sequence[Spend],
        delta: float,
        confidence: float,
        accountant: Accountant,
    ) -> WhiteBoxAudit:
        """Return both bounds from the best of several ``scores`` ``[m]``, with the epsilon of ``spends`` at ``delta``.

        The error probability is divided evenly. With sampling, most of it is assigned to the choice with the highest
        power for correct training: few canaries are informative then, and few guesses are needed.
        """
        count, error = len(self.included), 1.0 - confidence
        family, sampled = family_of(spends), any(spend.sampling_rate < 1.0 for spend in spends)
        tried, rest = [], error
        if sampled:
            tried.append((scores[-1], [(int(_LIKELY_SHARE * count), 0)], 1.0 - _LIKELY_ERROR * error))
            rest = (1.0 - _LIKELY_ERROR) * error
        few = [(int(share_in * count), int(share_out * count)) for share_in, share_out in GUESS_SHARES]
        for one in scores:
            positive = int((one > 0.0).sum())
            tried.append((one, [*few, (positive, count - positive)], 1.0 - rest / len(scores)))
        steinke = [best_bound(one, self.included, several, delta, each) for one, several, each in tried]
        f_dp = [best_curve_bound(one, self.included, several, delta, each, family) for one, several, each in tried]
        return WhiteBoxAudit(
            unit,
            epsilon(spends, delta, accountant),
            len(self.directions),
            replace(max(steinke, key=lambda bound: bound.epsilon), confidence=confidence),
            replace(max(f_dp, key=lambda bound: bound.epsilon), confidence=confidence),
        )

    def scores(self, seen: FloatArray, foreseen: FloatArray | None, spend: Spend) -> list[FloatArray]:
        """Return several scores of the canaries, each ``[m]``.

        :param seen: observation of each release and coordinate, ``[releases, m + references]``, in units in which a
            canary sampled in a step adds its direction
        :param foreseen: the noise as predicted by an outsider, same shape, or None
        :param spend: cost of one release
        """
        count, (releases, _) = len(self.included), seen.shape
        everything = seen if foreseen is None else np.concatenate([seen, foreseen])
        expected = np.zeros((len(everything), count))
        expected[:releases] = self.directions * (spend.sampling_rate * spend.steps)
        found = [gaussian_scores(everything[:, :count], everything[:, count:], expected)]
        if spend.sampling_rate < 1.0 and spend.steps <= _MOST_MIXED and spend.noise_multiplier:
            found.append(mixture_scores(seen[:, :count] * self.directions, spend))
        return found


def family_of(spends: Sequence[Spend]) -> Family:
    """Return the family of mechanisms with the sampling of ``spends``."""
    rates = {spend.sampling_rate for spend in spends}
    if rates == {1.0}:
        return Gaussian()
    (rate,) = rates
    return SampledGaussian(rate, sum(spend.steps for spend in spends))


def gaussian_scores(seen: FloatArray, references: FloatArray, expected: FloatArray) -> FloatArray:
    """Return log-likelihood ratios of inclusion, ``[m]``, for Gaussian noise with the references' covariance.

    :param seen: observations ``[signals, m]``
    :param references: noise only, ``[signals, n]``
    :param expected: expected contribution of an included canary ``[signals, m]``
    """
    covariance = references @ references.T / references.shape[1]
    least = _RIDGE * max(float(np.trace(covariance)) / len(covariance), _RIDGE)
    direction = np.linalg.solve(covariance + least * np.eye(len(covariance)), expected)
    ratio: FloatArray = (direction * (seen - expected / 2)).sum(axis=0)
    return ratio


def mixture_scores(shown: FloatArray, spend: Spend) -> FloatArray:
    """Return log-likelihood ratios of inclusion, ``[m]``, with Poisson sampling in each step and noise of ``spend``.

    :param shown: a release's sum over its steps in the canary's direction, ``[releases, m]``, in units of its gradient
    :param spend: cost of one release
    """
    taken = np.arange(spend.steps + 1.0)
    rate, variance = spend.sampling_rate, spend.steps * spend.noise_multiplier**2
    binomial = gammaln(spend.steps + 1) - gammaln(taken + 1) - gammaln(spend.steps - taken + 1)
    prior = binomial + taken * np.log(rate) + (spend.steps - taken) * np.log1p(-rate)
    total = np.full(shown.shape, -np.inf)
    for times, log_prior in zip(taken, prior, strict=True):
        total = np.logaddexp(total, log_prior + (times * shown - times**2 / 2) / variance)
    ratio: FloatArray = total.sum(axis=0)
    return ratio
