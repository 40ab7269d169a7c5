"""A private mean equals Flower's arithmetic and a slow twin, moves by one merchant's norm, and resumes bit for bit."""

import math
import weakref

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from flwr.supercore import differential_privacy as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from opacus.accountants.analysis.rdp import compute_rdp
from scipy import stats

from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.mechanisms.merchant import PrivateMean, QuantileClipping, merchant_noise, merchant_spend, update_noise
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import epsilon
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.transport.messages import Uplink

CURRENT = {
    "table": torch.arange(12.0).view(6, 2),
    "bias": torch.tensor([1.0, -2.0, 0.5]),
    "scale": torch.tensor(3.0),
    "steps": torch.tensor([3, 9]),
}
RANDOMNESS = (7, "fedavg-kd")


def private_mean(noise_multiplier=0.0, expected_merchants=4.0, clip_norm=1.0, randomness=RANDOMNESS, **options):
    return PrivateMean(noise_multiplier, expected_merchants, clip_norm, randomness, **options)


def uplinks(count, seed=0, spread=1.0):
    """Merchants of unequal size that send some rows of the table and everything else whole."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        rows = torch.randperm(6, generator=draw)[: 1 + number % 5].sort().values
        shapes = {"table": (len(rows), 2), "bias": (3,), "scale": ()}
        arrays = {name: spread * (1 + number) * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        made.append(
            Uplink(
                f"m{number}", 10**number, (StudentUpdate(arrays, {"table": rows}, {"table": torch.ones_like(rows)}),)
            )
        )
    return made


def whole(uplink=None):
    """A merchant's float weights in full, or those that it starts from, as float64 vectors in the order of their names.

    Vectors, because Flower leaves an array without dimensions as long as it was when it clips.
    """
    arrays = {name: CURRENT[name].double().numpy().copy() for name in ("bias", "scale", "table")}
    for name, change in uplink.need(StudentUpdate).arrays.items() if uplink else ():
        if name == "table":
            for place, row in enumerate(uplink.need(StudentUpdate).rows["table"].tolist()):
                arrays[name][row] += change.double().numpy()[place]
        else:
            arrays[name] += change.double().numpy()
    return [array.ravel() for array in arrays.values()]


def flat(weights):
    return torch.cat([weights[name].flatten() for name in ("bias", "scale", "table")]).double().numpy()


def test_without_noise_it_is_the_mean_of_the_updates_that_flower_clips():
    sent = uplinks(4, spread=0.2)
    start = whole()
    clipped = []
    for uplink in sent:
        weights = whole(uplink)
        flower.compute_clip_model_update(weights, start, 1.5)
        clipped.append(np.concatenate(weights))
    norms = [flower.get_norm([a - b for a, b in zip(whole(uplink), start, strict=True)]) for uplink in sent]
    assert min(norms) < 1.5 < max(norms)
    found = private_mean(clip_norm=1.5).average(CURRENT, sent)
    np.testing.assert_allclose(flat(found), np.mean(clipped, axis=0), rtol=1e-6)


def test_the_sum_is_divided_by_the_merchants_expected_and_not_by_those_who_came():
    sent = uplinks(3)
    few = flat(private_mean(expected_merchants=30.0).average(CURRENT, sent)) - flat(CURRENT)
    many = flat(private_mean(expected_merchants=3.0).average(CURRENT, sent)) - flat(CURRENT)
    np.testing.assert_allclose(10.0 * few, many, atol=1e-5)


def test_every_merchant_counts_the_same_whatever_its_examples():
    sent = uplinks(3)
    equal = [Uplink(uplink.merchant, 1, uplink.payloads) for uplink in sent]
    assert np.array_equal(flat(private_mean().average(CURRENT, sent)), flat(private_mean().average(CURRENT, equal)))


def test_what_was_not_sent_did_not_move():
    arrays = {"table": torch.tensor([[0.5, 0.0]]), "scale": torch.tensor(0.0)}
    sent = Uplink("a", 5, (StudentUpdate(arrays, {"table": torch.tensor([1])}, {"table": torch.tensor([4])}),))
    moved = private_mean(expected_merchants=1.0).average(CURRENT, [sent])
    expected = CURRENT["table"].clone()
    expected[1] = torch.tensor([2.5, 3.0])
    assert torch.equal(moved["table"], expected)
    assert torch.equal(moved["bias"], CURRENT["bias"]) and torch.equal(moved["scale"], CURRENT["scale"])


def test_frozen_weights_padding_and_counts_stay_bit_for_bit_and_do_not_count_to_the_norm():
    changed = {"table": torch.zeros(6, 2), "bias": torch.full((3,), 100.0), "scale": torch.tensor(0.5)}
    changed["table"][0] = 100.0
    sent = [Uplink("whole", 5, (StudentUpdate(changed),))]
    arrays = {"table": changed["table"][[0, 2]], "scale": changed["scale"]}
    sent.append(Uplink("part", 5, (StudentUpdate(arrays, {"table": torch.tensor([0, 2])}),)))
    options = {"frozen": frozenset({"bias"}), "padded": frozenset({"table"}), "expected_merchants": 2.0}
    moved = private_mean(**options).average(CURRENT, sent)
    assert torch.equal(moved["scale"], CURRENT["scale"] + 0.5)
    noised = private_mean(noise_multiplier=5.0, **options).average(CURRENT, sent)
    assert torch.equal(noised["bias"], CURRENT["bias"]) and torch.equal(noised["steps"], CURRENT["steps"])
    assert torch.equal(noised["table"][0], CURRENT["table"][0])
    assert bool((noised["table"][1:] != CURRENT["table"][1:]).all()) and noised["scale"] != moved["scale"]


def test_it_equals_a_slow_twin_that_holds_all_updates_at_once():
    sent = uplinks(9, seed=3)
    start = np.concatenate(whole())
    updates = np.stack([np.concatenate(whole(uplink)) - start for uplink in sent])
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    expected = start + (updates * np.minimum(1.0, 2.0 / norms)).sum(axis=0) / 12.5
    found = private_mean(expected_merchants=12.5, clip_norm=2.0).average(CURRENT, iter(sent))
    np.testing.assert_allclose(flat(found), expected, rtol=1e-6)


def test_uplinks_are_taken_one_after_another_and_let_go():
    refs, most = [], []

    def stream():
        for number in range(20):
            (uplink,) = uplinks(1, seed=number)
            refs.append(weakref.ref(uplink))
            most.append(sum(ref() is not None for ref in refs))
            yield uplink

    whole_list = [uplink for number in range(20) for uplink in uplinks(1, seed=number)]
    found = private_mean(0.5).average(CURRENT, stream())
    assert max(most) <= 2
    assert np.array_equal(flat(found), flat(private_mean(0.5).average(CURRENT, whole_list)))


finite = st.floats(-1e6, 1e6, width=32)
moves = hnp.arrays(np.float64, 8, elements=finite)


def sum_of(updates, clip_norm):
    """The sum of clipped updates before noise, from a mean that expects one merchant and starts at 0."""
    current = {"a": torch.zeros(5, dtype=torch.float64), "b": torch.zeros(3, 1, dtype=torch.float64)}
    sent = [
        Uplink(
            str(number),
            1,
            (StudentUpdate({"a": torch.from_numpy(move[:5]), "b": torch.from_numpy(move[5:]).view(3, 1)}),),
        )
        for number, move in enumerate(updates)
    ]
    summed = private_mean(expected_merchants=1.0, clip_norm=clip_norm).average(current, sent)
    return np.concatenate([summed["a"].numpy(), summed["b"].numpy().ravel()])


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, max_size=4), moves, st.floats(1e-3, 1e3))
def test_one_merchant_more_moves_the_sum_by_the_norm_at_most(others, move, clip_norm):
    change = np.linalg.norm(sum_of([*others, move], clip_norm) - sum_of(others, clip_norm))
    assert change <= clip_norm * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(moves, st.floats(1e-3, 1e3))
def test_an_update_is_shortened_to_the_norm_and_keeps_its_direction(move, clip_norm):
    length = np.linalg.norm(move)
    expected = move * min(1.0, clip_norm / length) if length else move
    np.testing.assert_allclose(sum_of([move], clip_norm), expected, rtol=1e-9, atol=1e-12)


def test_noise_on_every_entry_is_normal_with_flowers_deviation_also_if_nobody_came():
    current = {"large": torch.zeros(400, 300, dtype=torch.float64), "small": torch.zeros(2000, dtype=torch.float64)}
    mean = private_mean(noise_multiplier=1.3, expected_merchants=20.0, clip_norm=0.7)
    first, second = mean.average(current, []), mean.average(current, [])
    deviation = flower.compute_stdv(1.3, 0.7, 20)
    for name in current:
        noise = first[name].numpy().ravel()
        assert np.std(noise) == pytest.approx(deviation, rel=4.0 / math.sqrt(2 * noise.size))
        assert stats.kstest(noise / deviation, "norm").pvalue > 0.01
        assert abs(np.corrcoef(noise, second[name].numpy().ravel())[0, 1]) < 4.0 / math.sqrt(noise.size)


def test_noise_depends_on_seed_federation_and_round_and_on_nothing_else():
    def noise(*randomness, rounds=1):
        mean = private_mean(noise_multiplier=1.0, randomness=randomness)
        for _ in range(rounds):
            found = mean.average(CURRENT, [])
        return flat(found)

    reordered = dict(reversed(CURRENT.items()))
    again = private_mean(noise_multiplier=1.0).average(reordered, [])
    assert np.array_equal(noise(*RANDOMNESS), flat(again))
    others = [noise(8, "fedavg-kd"), noise(7, "fedavg"), noise(*RANDOMNESS, rounds=2)]
    assert not any(np.array_equal(noise(*RANDOMNESS), other) for other in others)


def test_an_uplink_without_an_update_is_refused_and_the_state_stays():
    mean = private_mean(noise_multiplier=1.0, adaptive=QuantileClipping(count_noise=4.0))
    before = mean.state()
    with pytest.raises(UplinkRejected, match="merchant b: its uplink has no update"):
        mean.average(CURRENT, [*uplinks(2), Uplink("b", 3)])
    assert mean.state() == before


def test_an_update_that_is_not_finite_is_refused():
    huge = {"w": torch.tensor([torch.inf])}
    with pytest.raises(UplinkRejected, match="merchant b: its update is not finite"):
        private_mean().average({"w": torch.zeros(1)}, [Uplink("b", 3, (StudentUpdate(huge),))])


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 1.9])
def test_the_noise_that_the_count_leaves_to_the_updates_is_flowers(noise_multiplier):
    count_noise, expected = flower.compute_adaptive_noise_params(noise_multiplier, 20, None)
    assert QuantileClipping().deviation(20) == count_noise == 1.0
    assert update_noise(noise_multiplier, count_noise) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 5.0), st.floats(1.05, 20.0))
def test_count_and_updates_together_cost_what_the_whole_noise_does(noise_multiplier, excess):
    """Theorem 1 of Andrew et al.: two Gaussian mechanisms on one sample, composed by dp-accounting."""
    count_noise = 0.5 * noise_multiplier * excess
    accountant = RdpAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(update_noise(noise_multiplier, count_noise)))
    accountant.compose(dp_accounting.GaussianDpEvent(2.0 * count_noise))  # the count, in units of its sensitivity 1/2
    alone = RdpAccountant()
    alone.compose(dp_accounting.GaussianDpEvent(noise_multiplier))
    assert accountant.get_epsilon(1e-5) == pytest.approx(alone.get_epsilon(1e-5), rel=1e-9)


def test_the_norm_follows_the_quantile_by_hand():
    # Two of five updates are within the norm 2. Ten were expected: 1/2 + (2 * 1/2 - 3 * 1/2) / 10 = 0.45.
    moves = [0.5, 2.0, 2.0001, 7.0, 100.0]
    sent = [Uplink(str(move), 1, (StudentUpdate({"w": torch.tensor([move])}),)) for move in moves]
    rule = QuantileClipping(quantile=0.7, learning_rate=0.4)
    mean = private_mean(expected_merchants=10.0, clip_norm=2.0, adaptive=rule)
    moved = mean.average({"w": torch.zeros(1)}, sent)
    assert moved["w"].item() == pytest.approx((0.5 + 4 * 2.0) / 10, rel=1e-6)
    assert mean.state()["clip_norm"].item() == pytest.approx(2.0 * math.exp(-0.4 * (0.45 - 0.7)), rel=1e-12)
    mean.average({"w": torch.zeros(1)}, [])  # nobody: 1/2
    assert mean.state()["clip_norm"].item() == pytest.approx(2.0 * math.exp(-0.4 * (0.45 + 0.5 - 1.4)), rel=1e-12)


def test_noise_grows_and_shrinks_with_the_norm_that_updates_are_clipped_to():
    """The multiplier is that of Andrew et al., theorem 1: the whole noise less what the count takes."""
    current = {"w": torch.zeros(100_000, dtype=torch.float64)}
    for quantile in (1.0, 0.0):
        rule = QuantileClipping(quantile, learning_rate=2.0, count_noise=5.0)
        mean = private_mean(1.3, expected_merchants=20.0, clip_norm=0.7, adaptive=rule)
        norms = []
        for _ in range(3):
            norms.append(mean.state()["clip_norm"].item())
            noise = mean.average(current, [])["w"].numpy()
            deviation = (1.3**-2 - 10.0**-2) ** -0.5 * norms[-1] / 20.0
            assert np.std(noise) == pytest.approx(deviation, rel=4.0 / math.sqrt(2 * noise.size))
        assert norms == sorted(norms, reverse=quantile == 0.0) and max(norms) > 2.0 * min(norms)


def test_if_all_that_were_expected_come_the_rule_is_the_papers():
    rule = QuantileClipping()
    for within in range(9):  # of 8 merchants: sum of b_i over m, then the geometric update with 0.2 and 0.5
        expected = 3.0 * math.exp(-0.2 * (within / 8 - 0.5))
        assert rule.next_norm(3.0, within / 2 - (8 - within) / 2, 8.0) == pytest.approx(expected, rel=1e-12)


def test_the_norm_settles_at_the_quantile_of_the_norms():
    norms = np.random.default_rng(0).lognormal(sigma=0.5, size=200)
    sent = [Uplink(str(norm), 1, (StudentUpdate({"w": torch.tensor([norm])}),)) for norm in norms]
    current = {"w": torch.zeros(1, dtype=torch.float64)}
    mean = private_mean(0.5, 200.0, 5.0, adaptive=QuantileClipping(quantile=0.8))
    for _ in range(60):
        mean.average(current, sent)
    assert mean.state()["clip_norm"].item() == pytest.approx(np.quantile(norms, 0.8), rel=0.1)


def test_noise_on_the_count_has_the_given_deviation():
    rule = QuantileClipping(count_noise=2.0)
    mean = private_mean(1.0, 50.0, 1.0, adaptive=rule)
    norms = [1.0]
    for _ in range(2000):
        mean.average({"w": torch.zeros(1)}, [])
        norms.append(mean.state()["clip_norm"].item())
    surplus = -np.diff(np.log(norms)) / rule.learning_rate * 50.0  # nobody came, and the quantile is 1/2
    assert np.std(surplus) == pytest.approx(2.0, rel=4.0 / math.sqrt(2 * 2000))
    assert stats.kstest(surplus / 2.0, "norm").pvalue > 0.01


def test_a_run_resumed_from_a_checkpoint_is_bit_equal(tmp_path):
    def build():
        return private_mean(1.0, 30.0, 0.5, adaptive=QuantileClipping())

    rounds = [uplinks(count, seed=count) for count in (3, 0, 5, 2)]
    undisturbed, weights = build(), CURRENT
    for sent in rounds:
        weights = undisturbed.average(weights, sent)

    first, resumed = build(), CURRENT
    for sent in rounds[:2]:
        resumed = first.average(resumed, sent)
    weights_of = {f"weights/{name}": value for name, value in resumed.items()}
    write_checkpoint(tmp_path / "checkpoint", {**weights_of, **first.state()}, {})
    tensors, _ = read_checkpoint(tmp_path / "checkpoint")
    second = build()
    second.restore(tensors)
    resumed = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    for sent in rounds[2:]:
        resumed = second.average(resumed, sent)
    assert all(torch.equal(resumed[name], weights[name]) for name in CURRENT)
    assert second.state() == undisturbed.state()


def test_rounds_cost_what_dp_accounting_finds_for_poisson_sampled_gaussians():
    accountant = RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(1.7))
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, 15))
    assert epsilon([merchant_spend(1.7, 0.3, 15)], 1e-3, "rdp") == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)


@pytest.mark.parametrize(("users", "published"), [(763_430, 4.634), (100_000_000, 1.152)])
def test_epsilon_is_below_the_published_one_of_dp_fedavg(users, published):
    """McMahan et al. 2018: 5,000 users a round expected, z = 1, 5,000 rounds, delta 1e-9, by the moments accountant."""
    spend = merchant_spend(1.0, 5000 / users, 5000)
    orders = np.arange(2, 33)
    rdp = compute_rdp(q=spend.sampling_rate, noise_multiplier=1.0, steps=spend.steps, orders=orders)
    moments = min(rdp + math.log(1e9) / (orders - 1))  # the conversion of Abadi et al. 2016, theorem 2
    assert moments == pytest.approx(published, abs=6e-4)
    assert epsilon([spend], 1e-9) < published


def test_calibrated_noise_keeps_the_target_and_a_little_less_does_not():
    noise = merchant_noise(3.0, 1e-2, 0.5, 10)
    assert (
        epsilon([merchant_spend(noise, 0.5, 10)], 1e-2) <= 3.0 < epsilon([merchant_spend(0.998 * noise, 0.5, 10)], 1e-2)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: private_mean(noise_multiplier=-1.0), "noise_multiplier must be finite and at least 0"),
        (lambda: private_mean(noise_multiplier=math.nan), "noise_multiplier must be finite"),
        (lambda: private_mean(expected_merchants=0.0), "expected_merchants and clip_norm above 0"),
        (lambda: private_mean(clip_norm=math.inf), "expected_merchants and clip_norm above 0"),
        (lambda: QuantileClipping(quantile=1.5), "a quantile between 0 and 1"),
        (lambda: QuantileClipping(learning_rate=0.0), "learning_rate above 0"),
        (lambda: QuantileClipping(count_noise=0.0), "count_noise must be finite and above 0"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_few_merchants_to_adapt_the_norm_within_the_noise_is_the_users_mistake():
    with pytest.raises(ConfigError, match=r"noise 0\.5 on its count requires a noise multiplier .* not 1"):
        private_mean(1.0, 10.0, adaptive=QuantileClipping())
