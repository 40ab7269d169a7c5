"""Each of Flower's strategies against the formula of its paper, written out in numpy on whole tables."""

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower

from fed_distill.aggregation import AGGREGATORS
from fed_distill.errors import ConfigError, TrainingError, UplinkRejected
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.transport.messages import Uplink

FLOATS = ("table", "bias", "scale")


def build(name, **options):
    return AGGREGATORS.build(name, options)


def weighted_mean(uplinks, weights):
    shares = np.array([uplink.examples for uplink in uplinks], dtype=np.float64)
    shares /= shares.sum()
    return {name: sum(share * one[name] for share, one in zip(shares, weights, strict=True)) for name in FLOATS}


def assert_weights(merged, expected, **tolerance):
    for name in FLOATS:
        np.testing.assert_allclose(
            merged[name].numpy(), expected[name], err_msg=name, **({"rtol": 2e-5, "atol": 1e-6} | tolerance)
        )


def test_fedavg_is_the_mean_of_whole_tables_weighted_by_examples(current, make_uplinks, dense):
    uplinks = make_uplinks(4)
    assert_weights(build("fedavg").average(current, uplinks), weighted_mean(uplinks, dense(uplinks)))


def test_fedavg_by_squared_examples_has_the_least_noise_of_means_whose_noise_falls_with_examples(
    current, make_uplinks, dense
):
    """Of all weights w that sum to 1, w proportional to n^2 has the least sum of (w / n)^2: the textbook mean."""
    uplinks = make_uplinks(3)
    variances = [1.0 / uplink.examples**2 for uplink in uplinks]
    least = [1.0 / variance / sum(1.0 / other for other in variances) for variance in variances]
    merged = build("fedavg", weight="examples-squared").average(current, uplinks)
    whole = dense(uplinks)
    expected = {name: sum(share * one[name] for share, one in zip(least, whole, strict=True)) for name in FLOATS}
    assert_weights(merged, expected)
    assert len({uplink.examples for uplink in uplinks}) > 1


def test_a_merchant_that_sent_no_update_does_not_count(current, make_uplinks, dense):
    uplinks = make_uplinks(3)
    merged = build("fedavg").average(current, [*uplinks, Uplink("silent", 1000)])
    assert_weights(merged, weighted_mean(uplinks, dense(uplinks)))


def by_flower(strategy, current, uplinks, dense, number=1):
    """Flower's own aggregate of all merchants' whole weights, each a message of its own."""
    strategy.configure_train(number, record(current), ConfigRecord(), None)
    replies = [
        message(up.examples, {name: torch.tensor(value, dtype=torch.float32) for name, value in one.items()})
        for up, one in zip(uplinks, dense(uplinks, current), strict=True)
    ]
    merged, _ = strategy.aggregate_train(number, replies)
    return {name: array.numpy().astype(np.float32) for name, array in merged.items()}


def record(weights):
    return ArrayRecord({name: Array(weights[name].numpy()) for name in sorted(FLOATS)})


def message(examples, weights):
    content = RecordDict({"arrays": record(weights), "metrics": MetricRecord({"num-examples": examples})})
    return SimpleNamespace(content=content, has_error=lambda: False)


@pytest.mark.parametrize("kind", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_a_running_mean_gives_what_flower_gives_from_all_merchants_at_once(current, make_uplinks, dense, kind):
    options = {} if kind == "FedAvg" else {"server_momentum": 0.9} if kind == "FedAvgM" else {"eta": 0.1}
    theirs = getattr(flower, kind)(fraction_train=0.0, fraction_evaluate=0.0, **options)
    ours = build(kind.lower(), **options)
    weights, expected = current, current
    for number in range(1, 4):
        uplinks = make_uplinks(8, number)
        if kind == "FedAvgM":
            theirs.current_arrays = None
        merged = by_flower(theirs, expected, uplinks, dense, number)
        expected = {**expected, **{name: torch.from_numpy(value) for name, value in merged.items()}}
        weights = ours.average(weights, iter(uplinks))
        for name in FLOATS:
            torch.testing.assert_close(weights[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_mean_of_ten_thousand_is_exact_to_float32():
    draw = np.random.default_rng(0)
    changes = draw.normal(0.001, 0.01, (10_000, 8)).astype(np.float32)
    examples = draw.integers(30, 900, 10_000)
    uplinks = (
        Uplink("m", int(count), (StudentUpdate({"w": torch.from_numpy(row)}),))
        for count, row in zip(examples, changes, strict=True)
    )
    merged = build("fedavg").average({"w": torch.zeros(8)}, uplinks)["w"].numpy()
    exact = [
        math.fsum(float(row) * int(n) for row, n in zip(column, examples, strict=True)) / int(examples.sum())
        for column in changes.T
    ]
    np.testing.assert_array_max_ulp(merged, np.array(exact, dtype=np.float32), maxulp=1)


class Watched:
    """Uplinks that note how many of them are alive at once."""

    def __init__(self, make):
        self.make, self.made, self.most = make, [], 0

    def __iter__(self):
        for number in range(8):
            uplink = self.make(number)
            self.made.append(weakref.ref(uplink.need(StudentUpdate)))
            self.most = max(self.most, sum(update() is not None for update in self.made))
            yield uplink
            del uplink


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedsubavg"])
def test_means_hold_one_merchants_update_at_a_time(current, name):
    rows = torch.tensor([1])

    def make(number):
        arrays = {name: torch.full_like(current[name], number) for name in FLOATS}
        arrays["table"] = arrays["table"][rows]
        return Uplink(f"m{number}", 1, (StudentUpdate(arrays, {"table": rows}, {"table": rows}),))

    watched = Watched(make)
    build(name).average(current, watched)
    assert watched.most <= 2  # the one before goes when the next one is there


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_an_error_in_the_middle_leaves_the_state_as_it_was(current, make_uplinks, name):
    aggregator = build(name)
    weights = aggregator.average(current, make_uplinks(8))
    before = {key: value.clone() for key, value in aggregator.state().items()}

    def broken():
        yield from make_uplinks(7, 1)
        raise TrainingError("too few")

    with pytest.raises(TrainingError):
        aggregator.average(weights, broken())
    after = aggregator.state()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_every_aggregator_keeps_names_shapes_types_and_integers(current, make_uplinks, name):
    merged = build(name).average(current, make_uplinks(8))
    assert list(merged) == list(current)
    for key, value in current.items():
        assert (merged[key].shape, merged[key].dtype) == (value.shape, value.dtype)
    assert merged["steps"].tolist() == [3, 9]


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_no_aggregator_changes_what_it_was_given(current, make_uplinks, name):
    before = {key: value.clone() for key, value in current.items()}
    uplinks = make_uplinks(8)
    sent = [{key: value.clone() for key, value in up.need(StudentUpdate).arrays.items()} for up in uplinks]
    build(name).average(current, uplinks)
    assert all(torch.equal(current[key], before[key]) for key in current)
    for uplink, copied in zip(uplinks, sent, strict=True):
        assert all(torch.equal(uplink.need(StudentUpdate).arrays[key], copied[key]) for key in copied)


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_the_order_in_which_weights_are_named_does_not_matter(current, make_uplinks, name):
    turned = dict(reversed(current.items()))
    uplinks = make_uplinks(8)
    aggregators = build(name), build(name)
    one, other = current, turned
    for seed in range(2):
        uplinks = make_uplinks(8, seed)
        one, other = aggregators[0].average(one, uplinks), aggregators[1].average(other, uplinks)
    assert all(torch.equal(one[key], other[key]) for key in current)


def test_fedmedian_is_the_median_of_each_coordinate(current, make_uplinks, dense):
    uplinks = make_uplinks(5)
    weights = dense(uplinks)
    expected = {name: np.median([one[name] for one in weights], axis=0) for name in FLOATS}
    assert_weights(build("fedmedian").average(current, uplinks), expected)


def test_fedtrimmedavg_leaves_out_the_share_at_each_end(current, make_uplinks, dense):
    uplinks = make_uplinks(8)
    weights = dense(uplinks)
    expected = {name: np.sort([one[name] for one in weights], axis=0)[2:-2].mean(axis=0) for name in FLOATS}
    assert_weights(build("fedtrimmedavg", beta=0.25).average(current, uplinks), expected)


def flat(weights):
    return np.concatenate([weights[name].ravel() for name in sorted(FLOATS)])


def krum_order(weights, byzantine):
    """Merchants by the sum of squared distances to their n - f - 2 nearest others (Blanchard et al. 2017, sec. 4)."""
    vectors = [flat(one) for one in weights]
    scores = []
    for number, vector in enumerate(vectors):
        distances = sorted(np.square(vector - other).sum() for place, other in enumerate(vectors) if place != number)
        scores.append(sum(distances[: len(vectors) - byzantine - 2]))
    return np.argsort(scores)


def test_krum_takes_the_merchant_nearest_to_its_neighbours(current, make_uplinks, dense):
    uplinks = make_uplinks(7)
    weights = dense(uplinks)
    expected = weights[krum_order(weights, byzantine=2)[0]]
    assert_weights(build("krum", num_malicious_nodes=2).average(current, uplinks), expected)


def test_multikrum_averages_the_merchants_that_krum_ranks_first(current, make_uplinks, dense):
    uplinks = make_uplinks(7)
    weights = dense(uplinks)
    chosen = krum_order(weights, byzantine=1)[:4]
    expected = weighted_mean([uplinks[place] for place in chosen], [weights[place] for place in chosen])
    assert_weights(build("multikrum", num_malicious_nodes=1, num_nodes_to_select=4).average(current, uplinks), expected)


def test_bulyan_averages_the_values_nearest_to_the_median_of_those_that_krum_selects(current, make_uplinks, dense):
    uplinks = make_uplinks(8)
    weights = dense(uplinks)
    selected = [weights[place] for place in krum_order(weights, byzantine=1)[: 8 - 2]]
    expected = {}
    for name in FLOATS:
        values = np.stack([one[name] for one in selected])
        nearest = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0)[: len(selected) - 2]
        expected[name] = np.take_along_axis(values, nearest, axis=0).mean(axis=0)
    assert_weights(build("bulyan", num_malicious_nodes=1).average(current, uplinks), expected)


def test_a_byzantine_merchant_does_not_reach_the_robust_aggregates(current, make_uplinks):
    uplinks = make_uplinks(8)
    for value in uplinks[3].need(StudentUpdate).arrays.values():
        value.mul_(10_000)
    for name in ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"):
        merged = build(name).average(current, uplinks)
        assert max(float(merged[key].abs().max()) for key in FLOATS) < 10, name
    assert float(build("fedavg").average(current, uplinks)["bias"].abs().max()) > 100


def test_fedavgm_is_stochastic_gradient_descent_with_momentum_on_the_mean_update(current, make_uplinks, dense):
    aggregator = build("fedavgm", server_learning_rate=0.5, server_momentum=0.9)
    weights = {name: current[name].numpy().astype(np.float64) for name in FLOATS}
    momentum = dict.fromkeys(FLOATS, 0.0)
    merged = current
    for seed in range(3):
        uplinks = make_uplinks(4, seed)
        mean = weighted_mean(uplinks, dense(uplinks, merged))
        momentum = {name: 0.9 * momentum[name] + (weights[name] - mean[name]) for name in FLOATS}
        weights = {name: weights[name] - 0.5 * momentum[name] for name in FLOATS}
        merged = aggregator.average(merged, uplinks)
    assert_weights(merged, weights)


def reddi(kind, weights, mean, m, v, beta_1=0.9, beta_2=0.99, eta=0.1, tau=1e-3, correction=1.0):
    """One server step of algorithm 2 of Reddi et al. 2021, with Flower's bias correction of Adam's learning rate."""
    delta = mean - weights
    m = beta_1 * m + (1 - beta_1) * delta
    if kind == "fedadagrad":
        v = v + delta**2
    elif kind == "fedadam":
        v = beta_2 * v + (1 - beta_2) * delta**2
    else:
        v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
    return weights + eta * correction * m / (np.sqrt(v) + tau), m, v


@pytest.mark.parametrize("kind", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_server_optimizers_follow_reddi_et_al(current, make_uplinks, dense, kind):
    aggregator = build(kind, eta=0.1)
    beta_1 = 0.0 if kind == "fedadagrad" else 0.9
    weights = {name: current[name].numpy().astype(np.float64) for name in FLOATS}
    m, v = dict.fromkeys(FLOATS, 0.0), dict.fromkeys(FLOATS, 0.0)
    merged = current
    for number in range(1, 4):
        uplinks = make_uplinks(4, number)
        mean = weighted_mean(uplinks, dense(uplinks, merged))
        # Flower corrects with the round, counted from 1, plus 1
        correction = np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1)) if kind == "fedadam" else 1.0
        for name in FLOATS:
            weights[name], m[name], v[name] = reddi(
                kind, weights[name], mean[name], m[name], v[name], beta_1, correction=correction
            )
        merged = aggregator.average(merged, uplinks)
    assert_weights(merged, weights, rtol=1e-3, atol=1e-4)


def test_fedadam_counts_rounds_as_flowers_own_loop_does(current, make_uplinks, monkeypatch):
    seen = []
    original = flower.FedAdam.aggregate_train
    monkeypatch.setattr(
        flower.FedAdam,
        "aggregate_train",
        lambda self, number, replies: seen.append(number) or original(self, number, replies),
    )
    aggregator = build("fedadam")
    aggregator.average(current, make_uplinks(2))
    again = build("fedadam")
    again.restore(aggregator.state())
    again.average(current, make_uplinks(2))
    assert seen == [1, 2]


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_a_restored_aggregator_goes_on_bit_for_bit(current, make_uplinks, tmp_path, name):
    one, weights = build(name), current
    for seed in range(2):
        weights = one.average(weights, make_uplinks(8, seed))
    write_checkpoint(tmp_path / "kept.safetensors", {**weights, **{f"a/{k}": v for k, v in one.state().items()}}, {})
    tensors, _ = read_checkpoint(tmp_path / "kept.safetensors")
    other = build(name)
    other.restore({key.removeprefix("a/"): value for key, value in tensors.items() if key.startswith("a/")})
    kept = {key: value for key, value in tensors.items() if not key.startswith("a/")}
    for seed in range(2, 4):
        weights, kept = one.average(weights, make_uplinks(8, seed)), other.average(kept, make_uplinks(8, seed))
    for key in current:
        assert torch.equal(weights[key], kept[key]), key


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("krum", {"num_malicious_nodes": 1}, 5),
        ("multikrum", {"num_malicious_nodes": 0, "num_nodes_to_select": 6}, 6),
        ("bulyan", {"num_malicious_nodes": 1}, 7),
    ],
)
def test_too_few_merchants_are_refused_with_the_number_that_is_needed(current, make_uplinks, name, options, needed):
    with pytest.raises(
        ConfigError, match=rf"aggregator {name} .* requires {needed} merchants a round, but {needed - 1} sent"
    ):
        build(name, **options).average(current, make_uplinks(needed - 1))
    assert build(name, **options).average(current, make_uplinks(needed))["bias"].shape == (3,)


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_nothing_to_merge_is_said(current, name):
    with pytest.raises(UplinkRejected, match="no merchant sent an update"):
        build(name).average(current, [Uplink("silent", 3)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedtrimmedavg", {"beta": 0.5}, "aggregator 'fedtrimmedavg': `beta` must be in the range"),
        ("krum", {"num_malicious_nodes": -1}, "aggregator 'krum', option num_malicious_nodes must be at least 0"),
        ("fedadam", {"eta": "big"}, "aggregator 'fedadam', option eta must be a number"),
        ("fedadam", {"eta": -1.0}, "aggregator 'fedadam', option eta must be greater than 0"),
        ("fedyogi", {"beta_1": 1.0}, "aggregator 'fedyogi', option beta_1 must be less than 1"),
        ("fedadagrad", {"tau": 0.0}, "aggregator 'fedadagrad', option tau must be greater than 0"),
        ("fedavg", {"eta": 1.0}, "aggregator 'fedavg' has no option 'eta'; it has: weight"),
    ],
)
def test_unfit_options_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
