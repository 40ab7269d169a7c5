"""What private releases cost together, as (epsilon, delta), and how much noise a budget asks for.

Every release here is a Poisson-subsampled Gaussian mechanism. They are composed by Rényi DP (``rdp``: Mironov, Talwar
and Zhang 2019, arXiv 1908.10530, section 3.3; turned into epsilon by Balle et al. 2020, arXiv 1905.09982, theorem 21)
or numerically (``prv``: Gopi, Lee and Wutschitz 2021, arXiv 2106.02848), without sampling exactly. The numbers are
Opacus', which takes over a second to import and is therefore imported when first needed.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fed_distill.errors import BudgetExceeded

Accountant = Literal["rdp", "prv"]
Stretches = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps), sorted

# Opacus' orders, and more at both ends: low ones for large epsilons, high ones for small epsilons and much noise.
# Above 1024 the binomial coefficients of the subsampled mechanism overflow.
_ORDERS = (
    *(1.01, 1.02, 1.05),
    *(1.0 + tenth / 10.0 for tenth in range(1, 100)),
    *(float(order) for order in range(12, 64)),
    *(64.0, 72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0, 640.0, 768.0, 896.0, 1024.0),
)
_LEAST_NOISE, _MOST_NOISE = 0.01, 1e6
_NOISE_TOLERANCE = 1e-3
_PRV_LIMIT = 300.0


@dataclass(frozen=True)
class Spend:
    """A stretch of equal steps of the Poisson-subsampled Gaussian mechanism.

    noise_multiplier: standard deviation of the noise in units of the step's L2 sensitivity; 0 is no privacy.
    sampling_rate: probability with which each member of the privacy unit takes part in a step, in (0, 1]; 1 is the
    plain Gaussian mechanism. steps: how many. Raises ValueError for anything else.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0.0):
            raise ValueError(f"noise_multiplier must be finite and at least 0, not {self.noise_multiplier}")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError(f"sampling_rate must be above 0 and at most 1, not {self.sampling_rate}")
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"steps must be a whole number of at least 1, not {self.steps}")


def default_delta(count: int) -> float:
    """The customary delta for ``count`` members of the privacy unit: count^-1.1, always below 1 / count."""
    if count < 1:
        raise ValueError(f"delta needs a count of at least 1, not {count}")
    return math.pow(max(count, 2), -1.1)


def epsilon(spends: Iterable[Spend], delta: float, accountant: Accountant = "rdp") -> float:
    """The epsilon at ``delta`` of all ``spends`` together, in any order; 0 without any, infinite without noise.

    An upper bound. ``prv`` is the closer one: exact where nothing is sampled, else within about 0.02 of the exact value
    up to an epsilon of 300, beyond which it is what ``rdp`` gives; never above ``rdp``. A noise multiplier below 0.01,
    which costs thousands, counts as none. ValueError unless 0 < delta < 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    return _epsilon(_merged(spends), delta, accountant)


def noise_for(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Iterable[Spend] = (),
    accountant: Accountant = "rdp",
) -> float:
    """The least noise multiplier with which ``steps`` steps, composed with ``beside``, stay within ``target_epsilon``.

    Found to 0.1 % on the safe side, and never below 0.01. Raises BudgetExceeded if ``beside`` alone costs more than
    the target, or leaves too little for any noise multiplier up to a million; ValueError for impossible numbers.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise ValueError(f"target_epsilon must be finite and above 0, not {target_epsilon}")
    others = tuple(beside)
    spent = epsilon(others, delta, accountant)
    if spent > target_epsilon:
        raise BudgetExceeded(
            f"epsilon {spent:.6g} is spent already, above the target of {target_epsilon:.6g} (delta {delta:.3g})"
        )
    return _noise_for(target_epsilon, delta, sampling_rate, steps, _merged(others), accountant)


@lru_cache(maxsize=2**13)
def _noise_for(
    target: float, delta: float, sampling_rate: float, steps: int, beside: Stretches, accountant: Accountant
) -> float:
    from scipy.optimize import brentq

    others = tuple(Spend(*stretch) for stretch in beside)

    def excess(noise_multiplier: float) -> float:
        return epsilon((*others, Spend(noise_multiplier, sampling_rate, steps)), delta, accountant) - target

    low, high = 0.5, 1.0
    while excess(high) > 0.0:
        low, high = high, 2.0 * high
        if high > _MOST_NOISE:
            raise BudgetExceeded(
                f"no noise keeps {steps} more steps within the target of epsilon {target:.6g} (delta {delta:.3g}): "
                f"{_epsilon(beside, delta, accountant):.6g} is spent already"
            )
    while low >= _LEAST_NOISE and excess(low) <= 0.0:
        low, high = 0.5 * low, low
    if low < _LEAST_NOISE:
        return high
    precision = _NOISE_TOLERANCE / 4.0
    noise = math.exp(brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=precision))
    while excess(noise) > 0.0:
        noise *= 1.0 + precision
    return noise


def _merged(spends: Iterable[Spend]) -> Stretches:
    """Equal steps counted together, so that it does not matter how they were split over rounds."""
    steps: dict[tuple[float, float], int] = defaultdict(int)
    for spend in spends:
        steps[float(spend.noise_multiplier), float(spend.sampling_rate)] += int(spend.steps)
    return tuple(sorted((*mechanism, count) for mechanism, count in steps.items()))


@lru_cache(maxsize=2**14)
def _epsilon(stretches: Stretches, delta: float, accountant: Accountant) -> float:
    if not stretches:
        return 0.0
    if any(noise_multiplier < _LEAST_NOISE for noise_multiplier, _, _ in stretches):
        return math.inf
    bound = _by_renyi(stretches, delta)
    if accountant == "rdp":
        return bound
    if all(sampling_rate == 1.0 for _, sampling_rate, _ in stretches):
        return _by_gaussian(stretches, delta, bound)
    return _by_prv(stretches, delta, bound)


def _by_renyi(stretches: Stretches, delta: float) -> float:
    """The least over all orders of the epsilon that an order gives.

    That epsilon is a convex function of the order (its Rényi divergence times order - 1 is) over order - 1, so it falls
    and then rises: a binary search finds the least after a dozen orders. A fractional order takes a millisecond.
    """

    def at(place: int) -> float:
        order = _ORDERS[place]
        divergence = sum(steps * _divergence(noise, rate, order) for noise, rate, steps in stretches)
        return divergence - (math.log(delta) + math.log(order)) / (order - 1.0) + math.log1p(-1.0 / order)

    return max(0.0, _least(at, len(_ORDERS)))


def _least(value: Callable[[int], float], size: int) -> float:
    """The least of ``value(0) ... value(size - 1)``, which fall and then rise."""
    low, high = 0, size - 1
    while low < high:
        middle = (low + high) // 2
        if value(middle) <= value(middle + 1):
            high = middle
        else:
            low = middle + 1
    return value(low)


@lru_cache(maxsize=2**17)
def _divergence(noise_multiplier: float, sampling_rate: float, order: float) -> float:
    """Rényi divergence of one step."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return max(0.0, float(compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=order)))


def _by_gaussian(stretches: Stretches, delta: float, bound: float) -> float:
    """The exact epsilon where nothing is sampled, at most ``bound``.

    Gaussian mechanisms compose to one whose mu is the root of the summed squares of theirs, 1 over the noise multiplier
    (Dong, Roth and Su 2022, corollary 3.3); its delta is that of Balle and Wang 2018, theorem 8.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    mu = math.sqrt(sum(steps / noise_multiplier**2 for noise_multiplier, _, steps in stretches))

    def excess(at: float) -> float:
        return float(ndtr(mu / 2.0 - at / mu) - math.exp(at + log_ndtr(-mu / 2.0 - at / mu))) - delta

    if excess(0.0) <= 0.0:
        return 0.0
    return min(bound, float(brentq(excess, 0.0, bound, xtol=1e-9)) + 1e-9)


def _by_prv(stretches: Stretches, delta: float, bound: float) -> float:
    """By numerical composition; where float64 cannot resolve that, ``bound`` stands."""
    import numpy as np
    from opacus.accountants import PRVAccountant

    if bound > _PRV_LIMIT:
        return bound
    accountant = PRVAccountant()
    accountant.history = list(stretches)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is")  # of a bound on the domain, which may be loose
        try:
            found = float(accountant.get_epsilon(delta))
        except (RuntimeError, ValueError):  # so it says of a mesh too coarse for so little noise or so small a delta
            return bound
    return min(bound, max(0.0, found)) if math.isfinite(found) else bound
