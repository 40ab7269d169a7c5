"""Epsilon and noise equal Opacus', dp-accounting's and published values, and compose as they should."""

import math
import subprocess
import sys

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fed_distill.errors import BudgetExceeded
from fed_distill.privacy.accounting import Spend, default_delta, epsilon, noise_for

STRETCHES = {
    "one stretch": [Spend(1.0, 0.1, 100)],
    "a large model": [Spend(1.1, 256 / 60000, 14062)],
    "much noise": [Spend(20.0, 0.2, 40)],
    "without sampling": [Spend(5.0, 1.0, 1)],
    "phases with other rates and noise": [Spend(1.26, 0.128, 40), Spend(2.0, 0.3, 5), Spend(10.0, 1.0, 40)],
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


@stretches
def test_rdp_equals_opacus(spends):
    assert epsilon(spends, 1e-3) == pytest.approx(by_opacus(RDPAccountant(), spends, 1e-3), rel=1e-12)


@pytest.mark.parametrize("spends", [spends for name, spends in STRETCHES.items() if name != "without sampling"])
def test_prv_equals_opacus(spends):
    assert epsilon(spends, 1e-5, "prv") == pytest.approx(by_opacus(PRVAccountant(), spends, 1e-5), rel=1e-9)


@stretches
@pytest.mark.parametrize("delta", [1e-3, 1e-6])
def test_rdp_equals_dp_accounting_up_to_its_bound_on_fractional_orders(spends, delta):
    reference = by_dp_accounting(RdpAccountant(), spends, delta)
    assert 0.995 * reference < epsilon(spends, delta) <= reference * (1 + 1e-9)


@stretches
def test_rdp_is_at_most_what_dp_accounting_gives_on_whole_orders(spends):
    whole = [*range(2, 64), 128, 256]
    assert epsilon(spends, 1e-6) <= by_dp_accounting(RdpAccountant(orders=whole), spends, 1e-6) * (1 + 1e-9)


@stretches
def test_prv_is_just_above_the_privacy_loss_distribution_of_dp_accounting(spends):
    exact = by_dp_accounting(PLDAccountant(), spends, 1e-5)
    assert exact - 1e-3 <= epsilon(spends, 1e-5, "prv") <= exact + 0.02


@pytest.mark.parametrize("noise", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-8])
def test_without_sampling_prv_is_exact(noise, delta):
    """Two stretches that compose to one Gaussian mechanism of half the noise of a step, whose delta is known."""
    spends = [Spend(noise, 1.0, 3), Spend(2.0 * noise, 1.0, 4)]
    found = epsilon(spends, delta, "prv")
    alone = GaussianPrivacyLoss(0.5 * noise)
    assert alone.get_delta_for_epsilon(found) == pytest.approx(delta, rel=1e-5)
    assert alone.get_delta_for_epsilon(found) <= delta * (1 + 1e-9)
    assert 0.75 * epsilon(spends, delta) < found < epsilon(spends, delta)


def test_a_delta_that_a_mechanism_has_at_epsilon_0_costs_nothing():
    assert epsilon([Spend(1000.0, 1.0, 1)], 0.01, "prv") == 0.0


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
    assert epsilon([spend], delta) == pytest.approx(published, rel=1e-4)


def test_prv_gives_a_published_value_of_the_privacy_loss_distribution():
    # tensorflow/privacy, compute_dp_sgd_privacy_test.py, PLD accountant; ours adds its error bound of 0.01
    assert epsilon([Spend(0.7, 1e-2, 120)], 1e-5, "prv") == pytest.approx(2.4612381 + 0.01, abs=1e-3)


@pytest.mark.parametrize(
    ("spend", "published"),
    [
        (Spend(4.0, 0.01, 10_000), 1.26),  # Abadi et al. 2016, section 3.2, moments accountant
        (Spend(1.12, 256 / 60_000, 60 * 234), 2.92),  # tensorflow/privacy, tutorials/README.md, 60 epochs
        (Spend(0.6, 256 / 60_000, 30 * 234), 9.74),
    ],
)
def test_epsilons_published_with_the_older_conversion_are_a_little_higher(spend, published):
    assert 0.8 * published < epsilon([spend], 1e-5) < published


@pytest.mark.parametrize(
    ("count", "target", "measured"),
    [(500, 1.0, 2.60), (500, 3.0, 1.26), (500, 8.0, 0.76), (2000, 1.0, 1.61), (2000, 3.0, 0.91), (2000, 8.0, 0.62)],
)
def test_noise_equals_measured_values(count, target, measured):
    noise = noise_for(target, default_delta(count), 64 / count, 5 * count // 64)
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
    assert noise_for(target, 1e-5, sampling_rate, steps) == pytest.approx(reference, rel=1e-3)


def test_prv_needs_less_noise_for_the_same_target():
    noise = noise_for(3.0, 1e-3, 0.128, 40, accountant="prv")
    assert noise < noise_for(3.0, 1e-3, 0.128, 40)
    assert 3.0 - 0.01 < by_opacus(PRVAccountant(), [Spend(noise, 0.128, 40)], 1e-3) <= 3.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 20.0), deltas, rates, counts, st.lists(a_spend, max_size=2))
def test_noise_keeps_the_target_beside_what_is_spent_and_a_thousandth_less_does_not(
    target, delta, sampling_rate, steps, beside
):
    if epsilon(beside, delta) > target:
        with pytest.raises(BudgetExceeded, match="is spent already"):
            noise_for(target, delta, sampling_rate, steps, beside)
        return
    try:
        noise = noise_for(target, delta, sampling_rate, steps, beside)
    except BudgetExceeded:
        assert epsilon([*beside, Spend(1e6, sampling_rate, steps)], delta) > target
        return
    assert epsilon([*beside, Spend(noise, sampling_rate, steps)], delta) <= target
    assert epsilon([*beside, Spend(noise * 0.999, sampling_rate, steps)], delta) > target


def test_what_is_spent_already_and_the_target_are_both_named():
    spent = epsilon([Spend(1.0, 0.1, 100)], 1e-5)
    with pytest.raises(BudgetExceeded, match=rf"epsilon {spent:.6g} is spent already, above the target of 3 "):
        noise_for(3.0, 1e-5, 0.1, 10, [Spend(1.0, 0.1, 100)])


def test_a_target_too_small_for_any_noise_is_refused():
    with pytest.raises(BudgetExceeded, match=r"no noise keeps 10 more steps within the target of epsilon 0\.001"):
        noise_for(0.001, 1e-5, 0.1, 10)


def test_a_generous_target_still_gets_noise():
    assert 0.0 < noise_for(1e5, 1e-5, 0.1, 1) < 0.02


@settings(max_examples=40, deadline=None)
@given(a_spend, deltas)
def test_epsilon_rises_with_steps_and_sampling_and_falls_with_noise(spend, delta):
    noise, rate, steps = spend.noise_multiplier, spend.sampling_rate, spend.steps
    base = epsilon([spend], delta)
    assert epsilon([Spend(noise, rate, steps + 10)], delta) >= base
    assert epsilon([Spend(noise, min(1.0, rate * 1.2), steps)], delta) >= base * (1 - 1e-9)
    assert epsilon([Spend(noise * 1.2, rate, steps)], delta) <= base * (1 + 1e-9)
    assert epsilon([spend], delta / 10) >= base


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
    assert epsilon(rounds, 1e-3) == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.builds(Spend, st.floats(0.7, 4.0), st.floats(0.01, 0.3), st.integers(1, 50)), max_size=2), deltas)
def test_prv_is_never_above_rdp(spends, delta):
    assert epsilon(spends, delta, "prv") <= epsilon(spends, delta)


@settings(max_examples=25, deadline=None)
@given(st.lists(a_spend, min_size=1, max_size=3), deltas)
def test_no_order_of_opacus_gives_a_smaller_epsilon(spends, delta):
    assert epsilon(spends, delta) <= max(0.0, by_opacus(RDPAccountant(), spends, delta)) * (1 + 1e-12)


def test_small_epsilons_are_tight_where_the_orders_of_opacus_end():
    spend = Spend(50.0, 1.0, 1)  # the plain Gaussian mechanism: exact by Balle and Wang 2018, theorem 8
    exact = by_dp_accounting(PLDAccountant(), [spend], 1e-5)
    with pytest.warns(UserWarning, match="Optimal order is the largest alpha"):
        loose = by_opacus(RDPAccountant(), [spend], 1e-5)
    assert exact < epsilon([spend], 1e-5) < 1.25 * exact < loose


def test_nothing_spent_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([Spend(1.0, 0.1, 1), Spend(0.0, 0.1, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(("spend", "delta"), [(Spend(0.05, 0.5, 5), 1e-5), (Spend(1.0, 0.1, 10), 1e-15)])
def test_where_prv_cannot_resolve_the_mechanism_the_bound_by_rdp_stands(spend, delta):
    assert math.isfinite(epsilon([spend], delta, "prv"))
    assert epsilon([spend], delta, "prv") == epsilon([spend], delta)


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_the_customary_delta_is_below_one_and_below_one_member_s_share(count):
    assert default_delta(count) < 1 / max(count, 2)
    assert count == 1 or default_delta(count) == pytest.approx(count**-1.1)


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
        (lambda: noise_for(0.0, 1e-5, 0.1, 1), "target_epsilon must be finite and above 0"),
        (lambda: noise_for(math.inf, 1e-5, 0.1, 1), "target_epsilon must be finite"),
        (lambda: noise_for(1.0, 1e-5, 0.1, 0), "steps must be"),
        (lambda: default_delta(0), "a count of at least 1"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_importing_the_module_does_not_import_opacus_or_torch():
    code = "import sys, fed_distill.privacy.accounting; print('opacus' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
