"""Epsilon and noise equal those of Opacus and dp-accounting and published values, and compose as they should."""

import math
import subprocess
import sys

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fed_distill.errors import BudgetExceeded
from fed_distill.privacy import accounting
from fed_distill.privacy.accounting import Spend, default_delta, epsilon, filtered, noise_for

STRETCHES = {
    "one stretch": [Spend(1.0, 0.1, 100)],
    "a large model": [Spend(1.1, 256 / 60000, 14062)],
    "much noise": [Spend(20.0, 0.2, 40)],
    "without sampling": [Spend(5.0, 1.0, 1)],
    "phases with other rates and noise": [Spend(1.26, 0.128, 40), Spend(2.0, 0.3, 5), Spend(10.0, 1.0, 40)],
    "a noised size, all examples, then batches": [Spend(6.0, 1.0, 1), Spend(8.0, 1.0, 40), Spend(2.0, 0.3, 5)],
    "nearly everyone": [Spend(2.0, 0.95, 20)],
}
stretches = pytest.mark.parametrize("spends", STRETCHES.values(), ids=STRETCHES)

noises = st.floats(0.4, 20.0)
rates = st.one_of(st.just(1.0), st.floats(1e-3, 0.99))
counts = st.integers(1, 500)
a_spend = st.builds(Spend, noises, rates, counts)
deltas = st.sampled_from([1e-3, 1e-5, 1e-7])


def history(spends):
    return [(spend.noise_multiplier, spend.sampling_rate, spend.steps) for spend in spends]


def by_opacus(accountant, spends, delta):
    accountant.history = history(spends)
    return accountant.get_epsilon(delta)


def by_dp_accounting(accountant, spends, delta):
    for spend in spends:
        event = dp_accounting.GaussianDpEvent(spend.noise_multiplier)
        if spend.sampling_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(spend.sampling_rate, event)
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, spend.steps))
    return accountant.get_epsilon(delta)


def by_optimistic_pld(spends, delta, interval=1e-3):
    """A lower bound on epsilon: losses rounded down ("privacy buckets" of dp-accounting)."""
    total = None
    for spend in spends:
        one = from_gaussian_mechanism(
            spend.noise_multiplier,
            pessimistic_estimate=False,
            value_discretization_interval=interval,
            sampling_prob=spend.sampling_rate,
            use_connect_dots=False,
        ).self_compose(spend.steps)
        total = one if total is None else total.compose(one)
    return total.get_epsilon_for_delta(delta)


@stretches
def test_rdp_equals_opacus(spends):
    assert epsilon(spends, 1e-3, "rdp") == pytest.approx(by_opacus(RDPAccountant(), spends, 1e-3), rel=1e-12)


@stretches
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_pld_equals_dp_accounting_with_finer_bins(spends, delta):
    reference = by_dp_accounting(PLDAccountant(value_discretization_interval=5e-5), spends, delta)
    assert epsilon(spends, delta) == pytest.approx(reference, rel=2e-3)


@stretches
def test_pld_is_no_less_than_losses_rounded_down(spends):
    assert epsilon(spends, 1e-5) >= by_optimistic_pld(spends, 1e-5)


@pytest.mark.parametrize("spends", [spends for name, spends in STRETCHES.items() if name != "without sampling"])
def test_pld_agrees_with_the_privacy_random_variables_of_opacus(spends):
    """Which add twice their error of 0.01 to be an upper bound."""
    reference = by_opacus(PRVAccountant(), spends, 1e-5)
    assert reference - 0.021 <= epsilon(spends, 1e-5) <= reference


@pytest.mark.parametrize("rate", [3e-4, 0.004, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("noise", "steps"), [(0.5, 3), (0.8, 60), (2.0, 700), (6.0, 1), (12.0, 4000)])
def test_bins_an_eighth_as_wide_give_little_less(noise, rate, steps, monkeypatch):
    spends = [Spend(noise, rate, steps), Spend(20.0, 1.0, 1)]
    found, width = epsilon(spends, 1e-5), accounting._bin_width
    monkeypatch.setattr(accounting, "_bin_width", lambda mechanisms: width(mechanisms) / 8.0)
    accounting._epsilon.cache_clear()
    finer = epsilon(spends, 1e-5)
    accounting._epsilon.cache_clear()
    assert finer <= found <= 1.002 * finer


@stretches
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_rdp_equals_dp_accounting_up_to_its_bound_on_fractional_orders(spends, delta):
    reference = by_dp_accounting(RdpAccountant(), spends, delta)
    assert 0.995 * reference < epsilon(spends, delta, "rdp") <= reference * (1 + 1e-9)


@stretches
def test_rdp_is_at_most_what_dp_accounting_gives_on_whole_orders(spends):
    whole = [*range(2, 64), 128, 256]
    assert epsilon(spends, 1e-6, "rdp") <= by_dp_accounting(RdpAccountant(orders=whole), spends, 1e-6) * (1 + 1e-9)


@pytest.mark.parametrize("noise", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-8])
def test_without_sampling_pld_is_exact(noise, delta):
    """Two stretches that compose to one Gaussian mechanism of half the noise of a step, whose delta is known."""
    spends = [Spend(noise, 1.0, 3), Spend(2.0 * noise, 1.0, 4)]
    found = epsilon(spends, delta)
    alone = GaussianPrivacyLoss(0.5 * noise)
    assert alone.get_delta_for_epsilon(found) == pytest.approx(delta, rel=1e-5)
    assert alone.get_delta_for_epsilon(found) <= delta * (1 + 1e-9)
    assert 0.75 * epsilon(spends, delta, "rdp") < found < epsilon(spends, delta, "rdp")


def test_a_delta_that_a_mechanism_has_at_epsilon_0_costs_nothing():
    assert epsilon([Spend(1000.0, 1.0, 1)], 0.01) == 0.0


@pytest.mark.parametrize(
    ("spend", "delta", "published"),
    [
        # tensorflow/privacy, privacy/analysis/compute_dp_sgd_privacy_test.py: (n, batch, noise, epochs)
        (Spend(1.3, 150 / 60_000, 15 * 400), 1e-5, 0.7242234026109595),
        (Spend(1.0, 100 / 100_000, 30 * 1000), 1e-7, 1.4154988495444842),
        (Spend(0.7, 1e-2, 120), 1e-5, 3.2392676),
        # pytorch/opacus, opacus/tests/accountants_test.py
        (Spend(1.5, 0.04, int(90 / 0.04)), 1e-5, 7.32911117143),
    ],
)
def test_rdp_gives_published_values(spend, delta, published):
    assert epsilon([spend], delta, "rdp") == pytest.approx(published, rel=1e-4)


def test_pld_gives_a_published_value():
    # tensorflow/privacy, compute_dp_sgd_privacy_test.py, PLD accountant
    assert epsilon([Spend(0.7, 1e-2, 120)], 1e-5) == pytest.approx(2.4612381, rel=2e-3)


@pytest.mark.parametrize(
    ("spend", "published"),
    [
        (Spend(4.0, 0.01, 10_000), 1.26),  # Abadi et al. 2016, section 3.2, moments accountant
        (Spend(1.12, 256 / 60_000, 60 * 234), 2.92),  # tensorflow/privacy, tutorials/README.md, 60 epochs
        (Spend(0.6, 256 / 60_000, 30 * 234), 9.74),
    ],
)
def test_epsilons_published_with_the_older_conversion_are_a_little_higher(spend, published):
    assert 0.8 * published < epsilon([spend], 1e-5, "rdp") < published


@pytest.mark.parametrize(
    ("count", "target", "measured"),
    [(500, 1.0, 2.60), (500, 3.0, 1.26), (500, 8.0, 0.76), (2000, 1.0, 1.61), (2000, 3.0, 0.91), (2000, 8.0, 0.62)],
)
def test_noise_equals_measured_values(count, target, measured):
    noise = noise_for(target, count**-1.1, 64 / count, 5 * count // 64, accountant="rdp")
    assert noise == pytest.approx(measured, rel=0.01)  # Opacus' own search stops within 0.01 of the target epsilon


@pytest.mark.parametrize(("target", "sampling_rate", "steps"), [(8.0, 0.04, 2000), (1.0, 0.2, 30), (3.0, 1.0, 10)])
def test_noise_is_no_more_than_opacus_finds(target, sampling_rate, steps):
    reference = get_noise_multiplier(
        target_epsilon=target,
        target_delta=1e-5,
        sample_rate=sampling_rate,
        steps=steps,
        accountant="rdp",
        epsilon_tolerance=1e-4,
    )
    assert noise_for(target, 1e-5, sampling_rate, steps, (), "rdp") == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize(("target", "sampling_rate", "steps"), [(1.0, 0.05, 50), (3.0, 0.128, 40), (8.0, 0.5, 500)])
def test_pld_needs_4_to_9_percent_less_noise_for_the_same_target(target, sampling_rate, steps):
    noise = noise_for(target, 1e-5, sampling_rate, steps)
    assert 0.91 < noise / noise_for(target, 1e-5, sampling_rate, steps, (), "rdp") < 0.96
    exact = by_dp_accounting(PLDAccountant(), [Spend(noise, sampling_rate, steps)], 1e-5)
    assert 0.997 * target < exact <= target * (1 + 1e-4)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@settings(max_examples=12, deadline=None)
@given(st.floats(0.5, 20.0), deltas, rates, counts, st.lists(a_spend, max_size=2))
def test_noise_keeps_the_target_beside_what_is_spent_and_a_thousandth_less_does_not(
    accountant, target, delta, sampling_rate, steps, beside
):
    if epsilon(beside, delta, accountant) > target:
        with pytest.raises(BudgetExceeded, match="has been spent"):
            noise_for(target, delta, sampling_rate, steps, beside, accountant)
        return
    try:
        noise = noise_for(target, delta, sampling_rate, steps, beside, accountant)
    except BudgetExceeded:
        assert epsilon([*beside, Spend(1e6, sampling_rate, steps)], delta, accountant) > target
        return
    assert epsilon([*beside, Spend(noise, sampling_rate, steps)], delta, accountant) <= target
    assert epsilon([*beside, Spend(noise * 0.999, sampling_rate, steps)], delta, accountant) > target


def test_what_is_spent_already_and_the_target_are_both_named():
    spent = epsilon([Spend(1.0, 0.1, 100)], 1e-5)
    with pytest.raises(BudgetExceeded, match=rf"epsilon {spent:.6g} has been spent, .* the target of 3 "):
        noise_for(3.0, 1e-5, 0.1, 10, [Spend(1.0, 0.1, 100)])


def test_a_target_too_small_for_any_noise_is_refused():
    with pytest.raises(BudgetExceeded, match=r"no noise level keeps 10 more steps within the target of epsilon 0\.001"):
        noise_for(0.001, 1e-5, 0.1, 10, (), "rdp")


def test_a_generous_target_still_gets_noise():
    assert 0.0 < noise_for(1e5, 1e-5, 0.1, 1) < 0.02


@settings(max_examples=40, deadline=None)
@given(a_spend, deltas)
def test_epsilon_rises_with_steps_and_sampling_and_falls_with_noise(spend, delta):
    noise, rate, steps = spend.noise_multiplier, spend.sampling_rate, spend.steps
    base = epsilon([spend], delta, "rdp")
    assert epsilon([Spend(noise, rate, steps + 10)], delta, "rdp") >= base
    assert epsilon([Spend(noise, min(1.0, rate * 1.2), steps)], delta, "rdp") >= base * (1 - 1e-9)
    assert epsilon([Spend(noise * 1.2, rate, steps)], delta, "rdp") <= base * (1 + 1e-9)
    assert epsilon([spend], delta / 10, "rdp") >= base


@settings(max_examples=40, deadline=None)
@given(st.lists(a_spend, min_size=1, max_size=3), st.data())
def test_splitting_a_stretch_over_rounds_and_their_order_change_nothing(spends, data):
    rounds = []
    for spend in spends:
        first = data.draw(st.integers(0, spend.steps))
        parts = [part for part in (first, spend.steps - first) if part]
        rounds += [Spend(spend.noise_multiplier, spend.sampling_rate, part) for part in parts]
    assert epsilon(data.draw(st.permutations(rounds)), 1e-5) == epsilon(spends, 1e-5)


def test_rounds_compose_to_one_accountant_over_all_their_steps():
    rounds = [Spend(1.26, 0.128, 4)] * 10
    accountant = RDPAccountant()
    for _ in range(40):
        accountant.step(noise_multiplier=1.26, sample_rate=0.128)
    assert epsilon(rounds, 1e-3, "rdp") == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.builds(Spend, st.floats(0.7, 4.0), st.floats(0.01, 0.3), st.integers(1, 50)), max_size=2), deltas)
def test_pld_is_never_above_rdp(spends, delta):
    assert epsilon(spends, delta) <= epsilon(spends, delta, "rdp")


@settings(max_examples=25, deadline=None)
@given(st.lists(a_spend, min_size=1, max_size=3), deltas)
def test_no_order_of_opacus_gives_a_smaller_epsilon(spends, delta):
    assert epsilon(spends, delta, "rdp") <= max(0.0, by_opacus(RDPAccountant(), spends, delta)) * (1 + 1e-12)


def test_small_epsilons_are_tight_where_the_orders_of_opacus_end():
    spend = Spend(50.0, 1.0, 1)  # the plain Gaussian mechanism: exact by Balle and Wang 2018, theorem 8
    exact = by_dp_accounting(PLDAccountant(), [spend], 1e-5)
    with pytest.warns(UserWarning, match="Optimal order is the largest alpha"):
        loose = by_opacus(RDPAccountant(), [spend], 1e-5)
    assert exact < epsilon([spend], 1e-5, "rdp") < 1.25 * exact < loose


def test_nothing_spent_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Spend(1.0, 0.1, 1), Spend(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("spend", "delta"), [(Spend(0.05, 0.5, 5), 1e-5), (Spend(0.01, 1e-6, 1), 1e-5), (Spend(1.0, 0.1, 10), 1e-15)]
)
def test_where_pld_cannot_resolve_the_mechanism_the_bound_by_rdp_stands(spend, delta):
    assert math.isfinite(epsilon([spend], delta))
    assert epsilon([spend], delta) == epsilon([spend], delta, "rdp")


@pytest.mark.parametrize(
    "mechanism", [(0.05, 1e-6, 1), (0.01, 0.999, 1), (0.3, 1e-6, 10), (1.0, 1e-9, 1), (100.0, 1e-5, 10**6)]
)
def test_extreme_mechanisms_have_bounded_distributions(mechanism):
    width = accounting._bin_width([mechanism])
    assert accounting._loss_distribution(*mechanism[:2], width)._pmf_remove.size <= 4 * accounting._MOST_BINS
    assert 0.0 <= epsilon([Spend(*mechanism)], 1e-5) <= epsilon([Spend(*mechanism)], 1e-5, "rdp")


@pytest.mark.parametrize(("count", "delta"), [(1, 1e-5), (500, 1e-5), (30_000, 1e-5), (10**6, 10**-6.6)])
def test_delta_is_at_most_1e_5_and_below_one_member_s_share(count, delta):
    assert default_delta(count) == pytest.approx(delta)
    assert default_delta(count) < 1 / count


@stretches
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_a_filter_costs_a_little_more_than_composition_by_rdp(spends, delta):
    found = filtered(spends, delta)
    assert epsilon(spends, delta, "rdp") < found < 1.2 * epsilon(spends, delta, "rdp")
    orders = [1.5, 2, 3, 4, 5, 6, 10, 20, 64]  # a share of delta each
    assert found == pytest.approx(by_dp_accounting(RdpAccountant(orders=orders), spends, delta / len(orders)), rel=0.01)


def test_a_filter_of_nothing_and_of_no_noise():
    assert filtered([], 1e-5) == 0.0
    assert filtered([Spend(1.0, 0.1, 1), Spend(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Spend(-1.0, 0.1, 1), "noise_multiplier must be finite and at least 0"),
        (lambda: Spend(math.inf, 0.1, 1), "noise_multiplier must be finite"),
        (lambda: Spend(math.nan, 0.1, 1), "noise_multiplier must be finite"),
        (lambda: Spend(1.0, 0.0, 1), "sampling_rate must be above 0"),
        (lambda: Spend(1.0, 1.1, 1), "at most 1, not 1.1"),
        (lambda: Spend(1.0, 0.1, 0), "steps must be a whole number of at least 1"),
        (lambda: Spend(1.0, 0.1, 1.5), "steps must be a whole number"),
        (lambda: epsilon([], 0.0), "delta must lie between 0 and 1"),
        (lambda: epsilon([], 1.0), "delta must lie between 0 and 1"),
        (lambda: filtered([], 0.0), "delta must lie between 0 and 1"),
        (lambda: noise_for(0.0, 1e-5, 0.1, 1), "target_epsilon must be finite and above 0"),
        (lambda: noise_for(math.inf, 1e-5, 0.1, 1), "target_epsilon must be finite"),
        (lambda: noise_for(1.0, 1e-5, 0.1, 0), "steps must be"),
        (lambda: default_delta(0), "a count of at least 1"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_importing_the_module_imports_nothing_slow():
    code = (
        "import sys, fed_distill.privacy.accounting; "
        "print(any(name in sys.modules for name in ('opacus', 'torch', 'dp_accounting', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
