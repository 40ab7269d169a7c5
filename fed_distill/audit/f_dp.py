"""A lower bound on epsilon from one training run by f-DP: closer than that of ``one_run`` where noise is Gaussian.

Mahloujifar, Melis and Chaudhuri, "Auditing f-differential privacy in one run", ICML 2025 (arXiv 2410.22235). The
hypothesis is a whole trade-off curve instead of one (epsilon, delta): that of Gaussian mechanisms with the sampling of
those that are audited, and any noise. Under it nobody guesses too many of many coin flips right. The least private
curve that the guesses reject gives the bound, which is its epsilon at delta.
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
"""From the probability of an event with a canary in (or out) to the least that it can be with the canary out (or in):
increasing, convex, at most the identity."""

_NOTHING = 1e-15
_LARGEST = 300.0
"""Epsilons beyond which no curve is told from the next."""
_STEP = 1.002
_LEAST, _MOST = -4000, 2000
"""Powers of ``_STEP``: parameters from 0.0003 to 54."""


@dataclass(frozen=True)
class CurveBound:
    """At ``confidence``, training is not as private as any mechanism of the family whose epsilon at ``delta`` is below
    ``epsilon``; the guesses are as in ``one_run.Bound``."""

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included_guesses: int
    excluded_guesses: int
    correct: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dict(vars(self))


class Family(Protocol):
    """Mechanisms with one parameter above 0; a larger one is less private."""

    def curve(self, parameter: float) -> Curve:
        """The trade-off curve of one."""

    def epsilon(self, parameter: float, delta: float) -> float:
        """Its epsilon at ``delta``."""


@dataclass(frozen=True)
class Gaussian:
    """Gaussian mechanisms, by mu: the sensitivity in standard deviations of the noise (Dong, Roth and Su 2022)."""

    def curve(self, parameter: float) -> Curve:
        """G_mu (definition 2.6)."""
        return lambda x: float(ndtr(ndtri(x) - parameter))

    def epsilon(self, parameter: float, delta: float) -> float:
        """By Balle and Wang 2018, theorem 8."""
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
class SampledGaussian:
    """``steps`` Gaussian mechanisms that take each member with probability ``rate`` below 1, by the inverse of the
    noise multiplier; their privacy losses are composed numerically, rounded so that no curve is too steep."""

    rate: float
    steps: int

    def curve(self, parameter: float) -> Curve:
        """From the divergences at many epsilons: P <= e^epsilon Q + delta of events, and so of their complements."""
        epsilons, deltas = _divergences(self.rate, self.steps, parameter)
        grown = np.exp(epsilons)

        def least(x: float) -> float:
            return max(0.0, float(np.maximum((x - deltas) / grown, 1.0 - deltas - grown * (1.0 - x)).max()))

        return least

    def epsilon(self, parameter: float, delta: float) -> float:
        """By the accountant."""
        from fed_distill.privacy.accounting import Spend, epsilon

        return epsilon([Spend(1.0 / parameter, self.rate, self.steps)], delta, "pld")


@lru_cache(maxsize=256)
def _divergences(rate: float, steps: int, parameter: float) -> tuple[FloatArray, FloatArray]:
    """Epsilons from 0 on, and the larger of both directions' deltas there."""
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
    """Whether ``correct`` or more right of ``guesses`` are less probable than 1 - ``confidence`` under ``curve``, F.

    Of a guesser who is right j times with probability p_j, let r_i = sum over j >= i of j p_j / m and h_i that of
    (g - j) p_j / m, for m canaries and g guesses. A canary and the event that i or more of the others are guessed
    right, averaged over the canaries, give h_i >= F(r_{i+1}) (section 3). So if p_c is what is left of the confidence,
    the least that all other p_j can be follows from the top downwards; where they sum to more than 1, that is
    r_0 + h_0 > g / m, there is no such guesser (algorithm 3, for two secrets each).
    Raises ValueError unless 0 <= correct <= guesses <= canaries and 0 < confidence < 1.
    """
    if not (0 <= correct <= guesses <= canaries and 0.0 < confidence < 1.0):
        raise ValueError(
            f"cannot be: {correct} right of {guesses} guesses on {canaries} canaries, confidence {confidence}"
        )
    if guesses == 0:
        return False
    tail, whole = 1.0 - confidence, guesses / canaries
    right, wrong = tail * correct / canaries, tail * (guesses - correct) / canaries
    for place in range(correct - 1, -1, -1):
        more = curve(right) - wrong
        if more <= _NOTHING * whole:
            break  # nothing changes any more
        right, wrong = right + place / (guesses - place) * more, wrong + more
        if right + wrong > whole:
            return True
    return False


def lower_bound(
    family: Family, canaries: int, guesses: int, correct: int, confidence: float, known: float = 0.0
) -> float:
    """The largest parameter, to 0.2 %, that so many right guesses reject at ``confidence``; ``known`` if that is not
    above it."""

    def fails(power: int) -> bool:
        return rejected(family.curve(_STEP**power), canaries, guesses, correct, confidence)

    low = round(math.log(known, _STEP)) if known else _LEAST
    if not fails(low + 1 if known else low):
        return known
    if not known:  # a curve's cost grows with its parameter: go up from a small one
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
    """The best bound over ``choices`` of (guesses in, guesses out), valid for all of them at once, as
    ``one_run.best_bound`` gives its own."""
    each, best, of = 1.0 - (1.0 - confidence) / max(len(choices), 1), 0.0, (0, 0, 0)
    for (guesses_in, guesses_out), correct in guessed(scores, included, choices):
        found = lower_bound(family, len(scores), guesses_in + guesses_out, correct, each, best)
        if found > best or of == (0, 0, 0):
            best, of = found, (guesses_in, guesses_out, correct)
    return CurveBound(family.epsilon(best, delta) if best else 0.0, delta, confidence, len(scores), *of)
