"""What a release that hides groups or merchants costs one example is never less than what replacing a member costs."""

import math

import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from scipy.special import logsumexp

from fed_distill.privacy.accounting import Spend, epsilon
from fed_distill.privacy.exposure import exposure_spends

GRID = np.linspace(-1.0, 1.0, 100_001)
RATES = [0.01, 0.1, 0.5, 0.95]
NOISES = [0.6, 1.0, 2.0, 8.0]


@pytest.mark.parametrize(("unit", "noise"), [("example", 4.0), ("group", 2.0), ("merchant", 2.0), ("vote", 4.0)])
def test_one_example_replaces_its_group_s_or_merchant_s_contribution(unit, noise):
    spends = [Spend(4.0, 0.2, 7), Spend(4.0, 1.0, 1)]
    assert exposure_spends(unit, spends) == (Spend(noise, 0.2, 7), Spend(noise, 1.0, 1))


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"unit must be one of example, group, label, merchant, vote .* not 'none'"):
        exposure_spends("none", [])


def test_an_own_unit_s_release_costs_what_it_states():
    assert exposure_spends("own:Unit", [Spend(4.0, 0.2, 7)], 4.0) == (Spend(1.0, 0.2, 7),)
    with pytest.raises(ValueError, match="'group' is built in"):
        exposure_spends("group", [Spend(4.0, 0.2, 7)], 1.0)


def log_mixture(at, rate, noise, member):
    """Log density of a subsampled Gaussian of which a member, with this contribution, may be part."""
    scale = -math.log(noise * math.sqrt(2.0 * math.pi))
    without, with_it = (scale - (at - mean) ** 2 / (2.0 * noise**2) for mean in (0.0, member))
    return np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_it)


def hockey_stick(upper, lower, level, step):
    """Integral of max(0, upper - exp(level) lower)."""
    return float(np.exp(upper + np.log(-np.expm1(np.minimum(level + lower - upper, 0.0)) + 1e-300)).sum() * step)


def log_renyi(order, upper, lower, step):
    """(order - 1) times the Rényi divergence."""
    return float(logsumexp(order * upper + (1.0 - order) * lower) + math.log(step))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("members", [(1.0, -1.0), (1.0, 0.2), (-0.5, 1.0), (0.0, 1.0)])
def test_replacing_diverges_no_more_than_removing_with_half_the_noise(rate, noise, members):
    at = GRID * (12.0 * noise + 4.0)
    step = float(at[1] - at[0])
    before, after = (log_mixture(at, rate, noise, member) for member in members)
    (priced,) = exposure_spends("merchant", [Spend(noise, rate, 1)])
    half_at = at / 2.0  # in units of twice the norm
    removed = log_mixture(half_at, rate, priced.noise_multiplier, 1.0)
    absent = log_mixture(half_at, rate, priced.noise_multiplier, 0.0)
    for level in (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0):
        bound = hockey_stick(removed, absent, level, step / 2.0)
        assert hockey_stick(before, after, level, step) <= bound * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("members", [(1.0, -1.0), (1.0, 0.2), (-0.5, 1.0), (0.0, 1.0)])
def test_so_do_renyi_divergences_by_which_releases_compose(rate, noise, members):
    """Of removal their closed form for whole orders is taken (Mironov, Talwar and Zhang 2019, section 3.3)."""
    for order in (2, 3, 6, 20, 64):
        at = GRID * (12.0 * noise + 4.0 + 2.0 * order)
        before, after = (log_mixture(at, rate, noise, member) for member in members)
        found = log_renyi(order, before, after, float(at[1] - at[0]))
        (priced,) = exposure_spends("group", [Spend(noise, rate, 1)])
        terms = [
            math.log(math.comb(order, k))
            + k * math.log(rate)
            + (order - k) * math.log1p(-rate)
            + k * (k - 1) / (2.0 * priced.noise_multiplier**2)
            for k in range(order + 1)
        ]
        assert found <= float(logsumexp(terms)) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 0.05, 40), (2.0, 0.3, 20), (8.0, 0.1, 400), (4.0, 0.9, 10)])
def test_many_releases_cost_no_less_than_dp_accounting_says_of_replacement(noise, rate, steps):
    one = from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        value_discretization_interval=1e-3,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    )
    replaced = one.self_compose(steps).get_epsilon_for_delta(1e-5)
    priced = exposure_spends("merchant", [Spend(noise, rate, steps)])
    assert replaced <= epsilon(priced, 1e-5, "rdp")
    assert epsilon([Spend(noise, rate, steps)], 1e-5) < replaced  # which the release's own price would not cover
