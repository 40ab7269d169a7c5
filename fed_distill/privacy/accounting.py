"""What private releases cost together, as (epsilon, delta), and how much noise a budget asks for.

Every release is a Gaussian mechanism, Poisson-subsampled or not, and the releases are composed by one of two
accountants. ``pld`` composes their privacy loss distributions numerically (Koskela, Jälkö and Honkela 2020, arXiv
1906.03049), discretised so that the result is an upper bound ("connect the dots": Doroshenko et al. 2022, arXiv
2207.04380); the distributions are dp-accounting's. ``rdp`` composes Rényi divergences (Mironov, Talwar and Zhang 2019,
arXiv 1908.10530, section 3.3) and converts them to epsilon by Balle et al. 2020, arXiv 1905.09982, theorem 21; the
divergences are Opacus'. Without sampling, ``pld`` is the exact Gaussian mechanism.

Both compositions hold for mechanisms that are fixed before the first release. ``filtered`` also holds when the noise
of a release depends on what was released before.

dp-accounting and Opacus take over a second to import and are imported when first needed.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fed_distill.errors import BudgetExceeded

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Accountant = Literal["pld", "rdp"]
DELTA = 1e-5
"""Delta of a promise, unless another is asked for or there are so many members that it must be smaller."""
REPORTED_DELTAS = (DELTA, 1e-6)
"""At which a report gives epsilon, whatever delta the promise has."""

Stretches = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps), sorted

# Opacus' orders, and more at both ends: low ones for large epsilons, high ones for small epsilons and much noise.
# Above 1024 the binomial coefficients of the subsampled mechanism overflow.
_ORDERS = (
    *(1.01, 1.02, 1.05),
    *(1.0 + tenth / 10.0 for tenth in range(1, 100)),
    *(float(order) for order in range(12, 64)),
    *(64.0, 72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 256.0, 320.0, 384.0, 512.0, 640.0, 768.0, 896.0, 1024.0),
)
_FILTER_ORDERS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 20.0, 64.0)
_LEAST_NOISE, _MOST_NOISE = 0.01, 1e6
_NOISE_TOLERANCE = 1e-3
_PLD_LIMIT = 300.0  # epsilons above this one are RDP's: exp(epsilon) is close to what float64 holds
_COARSENESS = 0.1  # width of a bin of privacy loss in standard deviations of a step's; costs 0.1 % of epsilon
_MOST_BINS = 2**16
_TAIL = 10.5  # standard deviations of noise; what lies beyond has probability exp(-57) and counts as certain loss
_ROUNDING = 1e-15  # what the Fourier transforms of a composition may lose of delta, a step


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
    """The delta of a promise to ``count`` members of the privacy unit: the smaller of 1e-5 and count^-1.1.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"delta needs a count of at least 1, not {count}")
    return min(DELTA, math.pow(count, -1.1))


def epsilon(spends: Iterable[Spend], delta: float, accountant: Accountant = "pld") -> float:
    """The epsilon at ``delta`` of all ``spends`` together, in any order; 0 without any, infinite without noise.

    An upper bound. ``pld`` is exact without sampling and otherwise at most 0.2 % above the exact value, more only where
    the losses of a step spread over 10,000 times their deviation. It is never above ``rdp``, which it falls back to for
    epsilons above 300 and for deltas that float64 cannot resolve. A noise multiplier below 0.01, which costs thousands,
    counts as none. Raises ValueError unless 0 < delta < 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    return _epsilon(_merged(spends), delta, accountant)


def filtered(spends: Iterable[Spend], delta: float) -> float:
    """The epsilon at ``delta`` of all ``spends``, valid when each was chosen after seeing the releases before it.

    A privacy filter (Rogers et al. 2016, arXiv 1605.08294): who stops before a release that would raise this number
    above a limit has an interaction that is (limit, delta)-DP as a whole, however the noise, rates and numbers of the
    releases were chosen. ``epsilon`` is no such bound in general, by either accountant: it optimises over what has
    been composed, and an adversary may compose accordingly.

    At a fixed Rényi order a, divergences of adaptively chosen releases add up (Feldman and Zrnic 2021, arXiv
    2008.11193, section 3): E[exp((a - 1) (L - R_a))] <= 1, where L is the privacy loss and R_a the sum of divergences
    of order a along the path that the interaction took. The order must be chosen in advance, so several of them share
    delta: assign each path to one order a by which it ends within the limit. The hockey-stick divergence of the whole
    is at most the sum over a of E[max(0, 1 - exp(limit - L))] over the paths of a, and by the argument of theorem 21 of
    Balle et al. each term is at most delta over the number of orders. This makes epsilon about 12 % larger than that of
    ``epsilon(..., "rdp")``. Raises ValueError unless 0 < delta < 1.
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    stretches = _merged(spends)
    if not stretches:
        return 0.0
    if any(noise_multiplier < _LEAST_NOISE for noise_multiplier, _, _ in stretches):
        return math.inf
    share = delta / len(_FILTER_ORDERS)
    return max(0.0, min(_at_order(stretches, share, order) for order in _FILTER_ORDERS))


def noise_for(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Iterable[Spend] = (),
    accountant: Accountant = "pld",
) -> float:
    """The least noise multiplier with which ``steps`` steps, composed with ``beside``, stay within ``target_epsilon``.

    Found to 0.1 % on the safe side, and never below 0.01. Raises BudgetExceeded if ``beside`` alone costs more than
    the target, or leaves too little for any noise multiplier up to a million; ValueError for impossible numbers.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise ValueError(f"target_epsilon must be finite and above 0, not {target_epsilon}")
    Spend(1.0, sampling_rate, steps)  # which says what is wrong with them
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
        """Logarithm of epsilon over its target, nearly linear in the logarithm of the noise."""
        found = epsilon((*others, Spend(noise_multiplier, sampling_rate, steps)), delta, accountant)
        return math.log(max(found, 1e-9 * target) / target)

    low = high = _guess(target, delta, sampling_rate, steps, beside, accountant)
    factor = 1.03
    while excess(high) > 0.0:
        if high >= _MOST_NOISE:
            raise BudgetExceeded(
                f"no noise keeps {steps} more steps within the target of epsilon {target:.6g} (delta {delta:.3g}): "
                f"{_epsilon(beside, delta, accountant):.6g} is spent already"
            )
        low, high, factor = high, min(high * factor, _MOST_NOISE), factor**2
    while low == high or excess(low) <= 0.0:
        if low <= _LEAST_NOISE:
            return _LEAST_NOISE
        low, high, factor = max(low / factor, _LEAST_NOISE), low, factor**2
    precision = _NOISE_TOLERANCE / 4.0
    noise = math.exp(brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=precision))
    while excess(noise) > 0.0:
        noise *= 1.0 + precision
    return noise


def _guess(
    target: float, delta: float, sampling_rate: float, steps: int, beside: Stretches, accountant: Accountant
) -> float:
    """About the noise multiplier that ``_noise_for`` looks for.

    For ``pld`` a little less than for ``rdp``, which is faster to find; for that by the central limit theorem of
    Gaussian DP: mu^2 of a stretch is steps rate^2 (exp(1 / noise^2) - 1) (Bu et al. 2020, arXiv 1911.11607, corollary
    4), of one without sampling steps / noise^2.
    """
    from scipy.optimize import brentq

    if accountant == "pld":
        with suppress(BudgetExceeded):  # what is beside may be within the target by pld alone
            return max(0.935 * _noise_for(target, delta, sampling_rate, steps, beside, "rdp"), _LEAST_NOISE)
    largest = math.sqrt(2.0 * target) + 1.0
    whole = float(brentq(lambda mu: _gaussian_delta(target, mu) - delta, 1e-9, largest + 10.0))
    spent = sum(
        count * (1.0 / noise**2 if rate == 1.0 else rate**2 * math.expm1(min(1.0 / noise**2, 100.0)))
        for noise, rate, count in beside
    )
    own = max(whole**2 - spent, 0.05 * whole**2) / steps
    noise = 1.0 / math.sqrt(own) if sampling_rate == 1.0 else 1.0 / math.sqrt(math.log1p(own / sampling_rate**2))
    return min(max(noise, 2.0 * _LEAST_NOISE), 0.5 * _MOST_NOISE)


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
    return _by_pld(stretches, delta, bound)


def _by_renyi(stretches: Stretches, delta: float) -> float:
    """The least over all orders of the epsilon that an order gives.

    That epsilon is a convex function of the order (its Rényi divergence times order - 1 is) over order - 1, so it falls
    and then rises: a binary search finds the least after a dozen orders. A fractional order takes a millisecond.
    """

    def at(place: int) -> float:
        return _at_order(stretches, delta, _ORDERS[place])

    return max(0.0, _least(at, len(_ORDERS)))


def _at_order(stretches: Stretches, delta: float, order: float) -> float:
    """The epsilon that the Rényi divergence of one order gives."""
    divergence = sum(steps * _divergence(noise, rate, order) for noise, rate, steps in stretches)
    return divergence - (math.log(delta) + math.log(order)) / (order - 1.0) + math.log1p(-1.0 / order)


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

    mu = _gaussian_mu(stretches)
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    found = float(brentq(lambda at: _gaussian_delta(at, mu) - delta, 0.0, bound, xtol=1e-9)) + 1e-9
    return min(bound, found)


def _gaussian_mu(stretches: Stretches) -> float:
    return math.sqrt(sum(steps / noise_multiplier**2 for noise_multiplier, _, steps in stretches))


def _gaussian_delta(epsilon: float, mu: float) -> float:
    from scipy.special import log_ndtr, ndtr

    return float(ndtr(mu / 2.0 - epsilon / mu) - math.exp(epsilon + log_ndtr(-mu / 2.0 - epsilon / mu)))


def _by_pld(stretches: Stretches, delta: float, bound: float) -> float:
    """By privacy loss distributions, both of adding and of removing a member; ``bound`` where they give no less."""
    steps = sum(count for _, _, count in stretches)
    resolved = delta - _ROUNDING * steps
    if bound > _PLD_LIMIT or resolved <= 0.0:
        return bound
    plain = tuple(one for one in stretches if one[1] == 1.0)
    mechanisms = [one for one in stretches if one[1] < 1.0]
    if plain:  # they compose to one, which needs no transform
        mechanisms.append((1.0 / _gaussian_mu(plain), 1.0, 1))
    width = _bin_width(mechanisms)
    try:
        total = None
        for noise, rate, count in mechanisms:
            several = _loss_distribution(noise, rate, width).self_compose(count)
            total = several if total is None else total.compose(several)
        assert total is not None
        found = float(total.get_epsilon_for_delta(resolved))
    except (ValueError, OverflowError):  # so dp-accounting says of divergences that float64 cannot tell apart
        return bound
    return min(bound, max(0.0, found)) if math.isfinite(found) else bound


def _bin_width(mechanisms: Iterable[tuple[float, float, int]]) -> float:
    """A power of two, in which privacy losses are counted; coarser means faster, larger epsilons.

    Splitting a loss between the two ends of its bin adds at most a quarter of a squared width to the variance of a
    step, so a width is measured by the root of the mean variance. Powers of two make equal widths, and so the same
    distributions, likely. At most ``_MOST_BINS`` bins bound memory and time.
    """
    variance, steps, span = 0.0, 0, 0.0
    for noise, rate, count in mechanisms:
        variance += count * min(rate**2 * math.expm1(min(1.0 / noise**2, 100.0)), rate / noise**2)
        steps += count
        farthest = _TAIL / noise + 0.5 / noise**2
        largest = farthest + math.log(rate) if farthest > 500.0 else math.log1p(rate * math.expm1(farthest))
        smallest = -farthest if rate == 1.0 else max(-farthest, math.log1p(-rate))
        span = max(span, largest - smallest)
    width = max(_COARSENESS * math.sqrt(variance / steps), (span + 20.0 * math.sqrt(variance)) / _MOST_BINS)
    return float(2.0 ** math.floor(math.log2(width)))


@lru_cache(maxsize=64)
def _loss_distribution(noise_multiplier: float, sampling_rate: float, width: float) -> "PrivacyLossDistribution":
    """Privacy losses of one step in bins of ``width``, rounded so that no divergence falls."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=width,
        sampling_prob=sampling_rate,
        use_connect_dots=True,
    )
