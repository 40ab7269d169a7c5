"""A lower bound on epsilon from one training run by f-DP, tighter than ``one_run`` for Gaussian noise.

Mahloujifar, Melis and Chaudhuri, "Auditing f-differential privacy in one run", ICML 2025 (arXiv 2410.22235). The null
hypothesis is a trade-off curve instead of one (epsilon, delta): that of Gaussian mechanisms with the sampling of the
audited ones and some noise. It limits the number of correct guesses of inclusion. The bound is the epsilon at delta of
the least private rejected curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from fed_distill.audit.membership import BoolArray
from fed_distill.audit.one_run import guessed
from fed_distill.audit.roc import FloatArray

Curve = Callable[[float], float]
"""Maps the probability of an event with a canary included (or excluded) to its minimum with the canary excluded (or
included): increasing, convex, at most the identity."""

_NOTHING = 1e-15
_LARGEST = 300.0
"""Upper limit of epsilon; curves beyond are indistinguishable."""
_STEP = 1.002
_LEAST, _MOST = -4000, 2000
"""Range of the exponents of ``_STEP``: parameters from 0.0003 to 54."""


@dataclass(frozen=True)
class CurveBound:
    """A lower bound: training is less private than any mechanism of the family with a smaller epsilon at ``delta``.

    It holds at ``confidence``; guesses are those of ``one_run.Bound``."""

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included_guesses: int
    excluded_guesses: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return dict(vars(self))


class Family(Protocol):
    """Mechanisms with one positive parameter; larger values are less private."""

    def curve(self, parameter: float) -> Curve:
        """Return the trade-off curve of a parameter."""

    def epsilon(self, parameter: float, delta: float) -> float:
        """Return the epsilon at ``delta`` of a parameter."""


@dataclass(frozen=True)
class Gaussian:
    """Gaussian mechanisms; the parameter is mu, the sensitivity in standard deviations (Dong, Roth and Su 2022)."""

    def curve(self, parameter: float) -> Curve:
        """Return G_mu (definition 2.6)."""
        return lambda x: float(ndtr(ndtri(x) - parameter))

    def epsilon(self, parameter: float, delta: float) -> float:
        """Return epsilon by Balle and Wang 2018, theorem 8."""
        from scipy.optimize import brentq

        def excess(epsilon: float) -> float:
            beyond = math.exp(epsilon + log_ndtr(-parameter / 2 - epsilon / parameter))
            return float(ndtr(parameter / 2 - epsilon / parameter)) - beyond - delta

        if excess(0.0) <= 0.0:
            return 0.0
        high = 1.0
        while excess(high) > 0.0:
            high *= 2.0
        return float(brentq(excess, 0.0, high, xtol=1e-9))


@dataclass(frozen=True)
class PureDP:
    """Mechanisms with (epsilon, 0)-DP; the parameter is epsilon."""

    def curve(self, parameter: float) -> Curve:
        """Return the curve of randomized response (Dong, Roth and Su 2022, proposition 2.5)."""
        return lambda x: max(math.exp(-parameter) * x, 1.0 - math.exp(parameter) * (1.0 - x), 0.0)

    def epsilon(self, parameter: float, delta: float) -> float:
        """Return epsilon, which is the same at every delta up to 0."""
        return parameter


@dataclass(frozen=True)
class SampledGaussian:
    """``steps`` Gaussian mechanisms with sampling probability ``rate`` < 1; the parameter is 1 / noise multiplier.

    Privacy losses are composed numerically and rounded so that no curve is too steep."""

    rate: float
    steps: int

    def curve(self, parameter: float) -> Curve:
        """Compute the curve from divergences at many epsilons: P <= e^epsilon Q + delta for events and complements."""
        epsilons, deltas = _divergences(self.rate, self.steps, parameter)
        grown = np.exp(epsilons)

        def least(x: float) -> float:
            return max(0.0, float(np.maximum((x - deltas) / grown, 1.0 - deltas - grown * (1.0 - x)).max()))

        return least

    def epsilon(self, parameter: float, delta: float) -> float:
        """Return epsilon by the accountant."""
        from fed_distill.privacy.accounting import Spend, epsilon

        return epsilon([Spend(1.0 / parameter, self.rate, self.steps)], delta, "pld")


@lru_cache(maxsize=256)
def _divergences(rate: float, steps: int, parameter: float) -> tuple[FloatArray, FloatArray]:
    """Return epsilons from 0 on, and the larger delta of both directions at each."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    variance = min(rate**2 * math.expm1(min(parameter**2, 100.0)), rate * parameter**2)
    width = max(0.05 * math.sqrt(variance), 20.0 * parameter**2 / 2**17)
    one = from_gaussian_mechanism(
        1.0 / parameter, value_discretization_interval=width, sampling_prob=rate, use_connect_dots=True
    )
    whole = one.self_compose(steps)
    farthest = min(10.0 * math.sqrt(steps * variance) + parameter**2, _LARGEST)
    epsilons = farthest * np.linspace(0.0, 1.0, 500) ** 2
    return epsilons, np.array(whole.get_delta_for_epsilon(epsilons))


def rejected(curve: Curve, canaries: int, guesses: int, correct: int, confidence: float) -> bool:
    """Return whether at least ``correct`` of ``guesses`` have probability below 1 - ``confidence`` under ``curve``, F.

    For a guesser with j correct guesses with probability p_j, m canaries and g guesses, let r_i be the sum over j >= i
    of j p_j / m, and h_i that of (g - j) p_j / m. A canary and the event that at least i of the others are guessed
    correctly, averaged over the canaries, give h_i >= F(r_{i+1}) (section 3). With p_c = 1 - confidence, the minimum of
    all other p_j follows from the top downwards; if they sum to more than 1, that is r_0 + h_0 > g / m, no such guesser
    exists (algorithm 3, for two secrets each).

    :raises ValueError: not 0 <= correct <= guesses <= canaries or not 0 < confidence < 1
    """
    if not (0 <= correct <= guesses <= canaries and 0.0 < confidence < 1.0):
        raise ValueError(
            f"impossible: {correct} correct of {guesses} guesses on {canaries} canaries, confidence {confidence}"
        )
    if guesses == 0:
        return False
    tail, whole = 1.0 - confidence, guesses / canaries
    right, wrong = tail * correct / canaries, tail * (guesses - correct) / canaries
    for place in range(correct - 1, -1, -1):
        more = curve(right) - wrong
        if more <= _NOTHING * whole:
            break  # converged
        right, wrong = right + place / (guesses - place) * more, wrong + more
        if right + wrong > whole:
            return True
    return False


def lower_bound(
    family: Family, canaries: int, guesses: int, correct: int, confidence: float, known: float = 0.0
) -> float:
    """Return the largest parameter, to 0.2 %, that the guesses reject at ``confidence``, at least ``known``."""

    def fails(power: int) -> bool:
        return rejected(family.curve(_STEP**power), canaries, guesses, correct, confidence)

    low = round(math.log(known, _STEP)) if known else _LEAST
    if not fails(low + 1 if known else low):
        return known
    if not known:  # cost grows with the parameter, so start from a small one
        low = max(low, next((power for power in range(-2000, low, -250) if fails(power)), low))
    stride = 125
    while low + stride <= _MOST and fails(low + stride):
        low, stride = low + stride, 2 * stride
    high = min(low + stride, _MOST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(middle) else (low, middle)
    return float(_STEP**low)


def best_curve_bound(
    scores: FloatArray,
    included: BoolArray,
    choices: Sequence[tuple[int, int]],
    delta: float,
    confidence: float,
    family: Family,
) -> CurveBound:
    """Return the best bound over ``choices`` of (guesses included, guesses excluded), valid for all jointly; see
    ``one_run.best_bound``."""
    each, best, of = 1.0 - (1.0 - confidence) / max(len(choices), 1), 0.0, (0, 0, 0)
    for (guesses_in, guesses_out), correct in guessed(scores, included, choices):
        found = lower_bound(family, len(scores), guesses_in + guesses_out, correct, each, best)
        if found > best or of == (0, 0, 0):
            best, of = found, (guesses_in, guesses_out, correct)
    return CurveBound(family.epsilon(best, delta) if best else 0.0, delta, confidence, len(scores), *of)
