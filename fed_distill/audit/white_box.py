"""White-box audits in one run: canaries in coordinates of their own, scored on what is released round by round.

The attacker is the strongest that the accounting allows: it sees every release, knows what each canary adds to it and
when, and reads all of it but the coins. A canary moves one coordinate that nobody else moves, and in each release in a
direction of its own (+1 or -1), so that noise which two releases share shows in their difference. Coordinates that no
canary moves tell how noise is spread over the releases, and so tell of noise that is missing, too small, reused, or
foreseen by an outsider who knows the run's seed. Two bounds on epsilon are drawn from the scores: that of Steinke, Nasr
and Jagielski 2023, and by f-DP that of Mahloujifar, Melis and Chaudhuri 2024.

An audit finds faults and never proves that there are none. Each bound holds with the given confidence; training that is
right exceeds its promise by either in one audit of ten at most, at confidence 0.95.
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
"""Coordinates that a canary may move, and that none moves."""

GUESS_SHARES = ((0.02, 0.0), (0.25, 0.0), (0.01, 0.01), (0.05, 0.05))
"""Shares of the canaries guessed to be in, and out. To have been drawn by a sampling coin shows more than not to have
been: hence the first two. Beside these choices all are guessed, by the signs of their scores, which finds noise that is
missing altogether."""

_LIKELY_SHARE, _LIKELY_ERROR = 0.02, 0.7
"""With sampling: the share of the canaries that are guessed to be in by the choice that is likely to show most, and
that choice's share of the error probability."""
_RIDGE = 1e-9
_MOST_MIXED = 64


@dataclass(frozen=True)
class WhiteBoxAudit:
    """What one audit found. unit: whose presence was guessed. promised: the accountant's epsilon at the bounds' delta,
    infinite without noise. releases: how many were seen. steinke, f_dp: the two bounds."""

    unit: str
    promised: float
    releases: int
    steinke: Bound
    f_dp: CurveBound

    @property
    def exceeded(self) -> bool:
        """Whether either bound is above what was promised: something is wrong, but for one audit of ten at
        confidence 0.95."""
        return max(self.steinke.epsilon, self.f_dp.epsilon) > self.promised

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form; ``promised`` is None where nothing was."""
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
        """``to_json`` with the bounds' epsilons alone."""
        return {**self.to_json(), "steinke": self.steinke.epsilon, "f_dp": self.f_dp.epsilon}


@dataclass(frozen=True)
class Canaries:
    """The secrets of an audit. included: the coins, bool ``[m]``. directions: +1 or -1, ``[releases, m]``, which the
    attacker knows."""

    included: BoolArray
    directions: FloatArray

    @classmethod
    def drawn(cls, count: int, releases: int, seed: int) -> "Canaries":
        """Drawn independently of all that a run draws. DataError for too few to flip both ways."""
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
        """Both bounds from the best of several ``scores`` ``[m]``, beside what ``spends`` promise at ``delta``.

        The error probability is divided evenly. With sampling, most of it goes to the one choice by which correct
        training shows most: there few canaries tell anything, and few guesses need it.
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
        """Ways to score the canaries, each ``[m]``.

        seen: what each release shows of each coordinate, ``[releases, m + references]``, in units in which a canary
        that takes part in a step adds its direction. foreseen: what an outsider takes the noise to be, of the same
        shape. spend: of one release.
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
    """Mechanisms that sample as ``spends`` do."""
    rates = {spend.sampling_rate for spend in spends}
    if rates == {1.0}:
        return Gaussian()
    (rate,) = rates
    return SampledGaussian(rate, sum(spend.steps for spend in spends))


def gaussian_scores(seen: FloatArray, references: FloatArray, expected: FloatArray) -> FloatArray:
    """Log-likelihood ratio of each canary's being in, ``[m]``, if noise is Gaussian with the references' covariance.

    seen, expected: ``[signals, m]``, what there is and what a canary that is in adds on average. references:
    ``[signals, n]``, noise alone.
    """
    covariance = references @ references.T / references.shape[1]
    least = _RIDGE * max(float(np.trace(covariance)) / len(covariance), _RIDGE)
    direction = np.linalg.solve(covariance + least * np.eye(len(covariance)), expected)
    ratio: FloatArray = (direction * (seen - expected / 2)).sum(axis=0)
    return ratio


def mixture_scores(shown: FloatArray, spend: Spend) -> FloatArray:
    """Log-likelihood ratio of each canary's being in, ``[m]``, if each of a release's steps takes it by a coin and
    noise is as ``spend`` has it.

    shown: ``[releases, m]``, a release's sum over its steps in the canary's direction, in units of its gradient.
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
