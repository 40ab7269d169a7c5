"""Privacy accounting: the (epsilon, delta) of composed releases, and the noise for a given budget.

Every release is a Gaussian mechanism, with or without Poisson subsampling. There are two accountants. ``pld`` composes
privacy loss distributions numerically (Koskela, Jälkö and Honkela 2020, arXiv 1906.03049), discretised so that the
result is an upper bound ("connect the dots": Doroshenko et al. 2022, arXiv 2207.04380), with dp-accounting. ``rdp``
composes Rényi divergences (Mironov, Talwar and Zhang 2019, arXiv 1908.10530, section 3.3), with Opacus, and converts
them to epsilon by Balle et al. 2020, arXiv 1905.09982, theorem 21. Without sampling, ``pld`` is the exact Gaussian
mechanism.

Both compositions require that the mechanisms are fixed before the first release. ``filtered`` also holds if the noise
of a release depends on earlier releases.

dp-accounting and Opacus take over a second to import and are imported on first use.
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
"""Default delta; the actual one is smaller if there are many members, see ``default_delta``."""
REPORTED_DELTAS = (DELTA, 1e-6)
"""Values of delta at which reports give epsilon, in addition to the configured one."""

Stretches = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, steps), sorted

# Opacus' orders, extended at both ends: low ones for large epsilons, high ones for small epsilons and much noise.
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
_PLD_LIMIT = 300.0  # above, RDP is used: exp(epsilon) approaches the range of float64
_COARSENESS = 0.1  # bin width of privacy losses, in standard deviations of one step; costs 0.1 % of epsilon
_MOST_BINS = 2**16
_TAIL = 10.5  # standard deviations of noise; the tail beyond has probability exp(-57) and counts as infinite loss
_ROUNDING = 1e-15  # rounding error of the Fourier transforms, in delta per step


@dataclass(frozen=True)
class Spend:
    """A number of equal steps of the Poisson-subsampled Gaussian mechanism.

    noise_multiplier: standard deviation of the noise in units of the L2 sensitivity; 0 means no privacy. sampling_rate:
    probability that a member of the privacy unit participates in a step, in (0, 1]; 1 means no subsampling. steps:
    number of steps. Raises ValueError for values out of range.
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
    """Return the default delta for ``count`` members of the privacy unit: the minimum of 1e-5 and count^-1.1.

    :raises ValueError: ``count`` is less than 1
    """
    if count < 1:
        raise ValueError(f"delta requires a count of at least 1, not {count}")
    return min(DELTA, math.pow(count, -1.1))


def epsilon(spends: Iterable[Spend], delta: float, accountant: Accountant = "pld") -> float:
    """Return an upper bound on the epsilon of all ``spends`` together.

    ``pld`` is exact without sampling; otherwise it exceeds the exact value by at most 0.2 %, or more if the losses of a
    step spread over 10,000 times their standard deviation. It is never larger than ``rdp``, which replaces it for
    epsilons above 300 and for deltas that float64 cannot resolve. Noise multipliers below 0.01 count as 0.

    :param spends: steps to compose, in any order
    :param delta: delta, strictly between 0 and 1
    :param accountant: ``pld`` or ``rdp``
    :returns: epsilon; 0 without spends, infinite without noise
    :raises ValueError: ``delta`` is out of range
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    return _epsilon(_merged(spends), delta, accountant)


def filtered(spends: Iterable[Spend], delta: float) -> float:
    """Return an upper bound on the epsilon of all ``spends``, valid if each was chosen adaptively.

    This is a privacy filter (Rogers et al. 2016, arXiv 1605.08294): an interaction that stops before this number would
    exceed a limit is (limit, delta)-DP as a whole, however the noise, rates and numbers of the releases were chosen.
    ``epsilon`` is not such a bound in general, with either accountant: it optimises over the composed mechanisms, and
    an adversary may choose them accordingly.

    At a fixed Rényi order a, divergences of adaptively chosen releases add up (Feldman and Zrnic 2021, arXiv
    2008.11193, section 3): E[exp((a - 1) (L - R_a))] <= 1, where L is the privacy loss and R_a the sum of divergences
    of order a along the path of the interaction. The order must be fixed in advance, so several orders share delta:
    assign each path to one order a for which it ends within the limit. The hockey-stick divergence of the whole is at
    most the sum over a of E[max(0, 1 - exp(limit - L))] over the paths of a, and by the argument of theorem 21 of Balle
    et al. each term is at most delta divided by the number of orders. Epsilon is about 12 % larger than
    ``epsilon(..., "rdp")``.

    :param spends: steps to compose
    :param delta: delta, strictly between 0 and 1
    :raises ValueError: ``delta`` is out of range
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
    """Return the smallest noise multiplier that keeps a number of steps within a target epsilon.

    :param target_epsilon: epsilon of the steps and ``beside`` together
    :param delta: delta of the target
    :param sampling_rate: sampling rate of the steps
    :param steps: number of steps
    :param beside: spends that are composed with the steps
    :param accountant: ``pld`` or ``rdp``
    :returns: noise multiplier, at least 0.01, rounded up by at most 0.1 %
    :raises BudgetExceeded: ``beside`` exceeds the target, or noise multipliers up to a million do not suffice
    :raises ValueError: a parameter is out of range
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0.0):
        raise ValueError(f"target_epsilon must be finite and above 0, not {target_epsilon}")
    Spend(1.0, sampling_rate, steps)  # validates both
    others = tuple(beside)
    spent = epsilon(others, delta, accountant)
    if spent > target_epsilon:
        raise BudgetExceeded(
            f"epsilon {spent:.6g} has been spent, which exceeds the target of {target_epsilon:.6g} (delta {delta:.3g})"
        )
    return _noise_for(target_epsilon, delta, sampling_rate, steps, _merged(others), accountant)


@lru_cache(maxsize=2**13)
def _noise_for(
    target: float, delta: float, sampling_rate: float, steps: int, beside: Stretches, accountant: Accountant
) -> float:
    from scipy.optimize import brentq

    others = tuple(Spend(*stretch) for stretch in beside)

    def excess(noise_multiplier: float) -> float:
        """Return log(epsilon / target), which is nearly linear in the logarithm of the noise."""
        found = epsilon((*others, Spend(noise_multiplier, sampling_rate, steps)), delta, accountant)
        return math.log(max(found, 1e-9 * target) / target)

    low = high = _guess(target, delta, sampling_rate, steps, beside, accountant)
    factor = 1.03
    while excess(high) > 0.0:
        if high >= _MOST_NOISE:
            raise BudgetExceeded(
                f"no noise level keeps {steps} more steps within the target of epsilon {target:.6g} "
                f"(delta {delta:.3g}): {_epsilon(beside, delta, accountant):.6g} has been spent"
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
    """Return a starting point for the search in ``_noise_for``.

    For ``pld``, slightly less than the result of ``rdp``, which is faster. For ``rdp``, by the central limit theorem of
    Gaussian DP: mu^2 is steps rate^2 (exp(1 / noise^2) - 1) with sampling (Bu et al. 2020, arXiv 1911.11607, corollary
    4), and steps / noise^2 without.
    """
    from scipy.optimize import brentq

    if accountant == "pld":
        with suppress(BudgetExceeded):  # ``beside`` may be within the target for pld and not for rdp
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
    """Merge equal steps, so that their distribution over rounds does not matter."""
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
    """Return the minimum over all Rényi orders of the resulting epsilon.

    Epsilon is a convex function of the order divided by order - 1 (the Rényi divergence times order - 1 is convex), so
    it is unimodal, and a binary search evaluates a dozen orders. A fractional order takes a millisecond.
    """

    def at(place: int) -> float:
        return _at_order(stretches, delta, _ORDERS[place])

    return max(0.0, _least(at, len(_ORDERS)))


def _at_order(stretches: Stretches, delta: float, order: float) -> float:
    """Return the epsilon that follows from the Rényi divergence of one order."""
    divergence = sum(steps * _divergence(noise, rate, order) for noise, rate, steps in stretches)
    return divergence - (math.log(delta) + math.log(order)) / (order - 1.0) + math.log1p(-1.0 / order)


def _least(value: Callable[[int], float], size: int) -> float:
    """Return the minimum of ``value(0) ... value(size - 1)``, which is unimodal."""
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
    """Return the Rényi divergence of one step."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return max(0.0, float(compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=order)))


def _by_gaussian(stretches: Stretches, delta: float, bound: float) -> float:
    """Return the exact epsilon without sampling, at most ``bound``.

    Gaussian mechanisms with mu_i = 1 / noise multiplier compose to one with mu^2 = sum of mu_i^2 (Dong, Roth and Su
    2022, corollary 3.3); its delta is given by Balle and Wang 2018, theorem 8.
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
    """Return epsilon by privacy loss distributions, for adding and removing a member; at most ``bound``."""
    steps = sum(count for _, _, count in stretches)
    resolved = delta - _ROUNDING * steps
    if bound > _PLD_LIMIT or resolved <= 0.0:
        return bound
    plain = tuple(one for one in stretches if one[1] == 1.0)
    mechanisms = [one for one in stretches if one[1] < 1.0]
    if plain:  # Gaussian mechanisms without sampling compose in closed form
        mechanisms.append((1.0 / _gaussian_mu(plain), 1.0, 1))
    width = _bin_width(mechanisms)
    try:
        total = None
        for noise, rate, count in mechanisms:
            several = _loss_distribution(noise, rate, width).self_compose(count)
            total = several if total is None else total.compose(several)
        assert total is not None
        found = float(total.get_epsilon_for_delta(resolved))
    except (ValueError, OverflowError):  # raised by dp-accounting for divergences that float64 cannot resolve
        return bound
    return min(bound, max(0.0, found)) if math.isfinite(found) else bound


def _bin_width(mechanisms: Iterable[tuple[float, float, int]]) -> float:
    """Return the bin width of privacy losses, a power of two; coarser is faster and gives larger epsilons.

    Splitting a loss between the two ends of its bin adds at most a quarter of the squared width to the variance of a
    step, so the width is relative to the root of the mean variance. Powers of two make equal widths, and so cached
    distributions, likely. At most ``_MOST_BINS`` bins are used, which bounds memory and time.
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
    """Return the discretised privacy loss distribution of one step, rounded pessimistically."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=width,
        sampling_prob=sampling_rate,
        use_connect_dots=True,
    )
