"""A merchant counts for no more than its limit in any mean, whatever size it claims, and honest ones for what they
are."""

import logging
from dataclasses import replace

import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fed_distill.aggregation.fedavg import WeightedMean
from fed_distill.aggregation.fedsubavg import USES_PER_EXAMPLE, FedSubAvg
from fed_distill.coordinator.counts import Counts, most
from fed_distill.coordinator.sites import Chunk
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.merchant.app import build_app
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import MOST_EXAMPLES, by_prefix, decode_uplink
from fed_distill.transport.requests import QUERY_MERCHANTS, TRAIN

SIZES = st.lists(st.integers(1, 10) | st.integers(1, MOST_EXAMPLES), min_size=1, max_size=9)
SHARE, RATIO = 0.6, 20.0


def slow_limit(sizes, share, ratio):
    """The largest limit, by bisection: cut to it, nobody is more than ``share`` of all, or ``ratio`` medians."""
    ratio_limit = ratio * sorted(sizes)[(len(sizes) - 1) // 2]
    low, high = min(sizes), min(max(sizes), ratio_limit)
    fits = lambda limit: limit <= share * sum(min(size, limit) for size in sizes)  # noqa: E731
    if len(sizes) == 1 or fits(high):
        return high
    for _ in range(200):
        low, high = (middle, high) if fits(middle := (low + high) / 2) else (low, middle)
    return low


@settings(derandomize=True, database=None, max_examples=300)
@given(SIZES, st.floats(0.05, 0.95), st.floats(1.0, 50.0))
def test_the_limit_is_the_largest_that_keeps_everybody_below_both(sizes, share, ratio):
    found = min(most(sizes, share, ratio), max(sizes))
    assert found == pytest.approx(slow_limit(sizes, share, ratio), rel=1e-9)


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [
        ([500.0] * 4 + [2.0**31], 3000.0),  # 0.6 of 5000
        ([300.0] * 89 + [2.0**31], 6000.0),  # 20 medians, 0.18 of the mean
        ([100.0, 2.0**31], 150.0),
        ([7.0], 140.0),  # alone it is the mean in any case
    ],
)
def test_what_a_claim_of_2_31_examples_counts_for(sizes, limit):
    assert most(sizes, SHARE, RATIO) == pytest.approx(limit)


def test_honest_sizes_are_not_cut():
    """Of two merchants of like sizes, and of many, of which the largest has 18 times the median, as in PriceRunner."""
    for sizes in ([100.0, 149.0], [22.0, 100.0, 100.0, 100.0, 620.0, 848.0, 1052.0, 1816.0] + [100.0] * 20):
        assert most(sizes, SHARE, RATIO) > max(sizes)
    assert most([1.0, 2.0**31], None, None) == float("inf")


def sent(name, examples, counts=(3, 4), rows=(0, 1)):
    values = PartialWeights(
        {"table": torch.ones(len(rows), 2), "bias": torch.ones(2)},
        {"table": torch.tensor(rows)},
        {"table": torch.tensor(counts)},
    )
    return Uplink(name, examples, (StudentUpdate.of(values),))


def test_merchants_of_later_chunks_are_taken_to_be_as_large_as_the_median():
    """A share of the round and not of its first chunk: honest merchants are not cut for being taken in by two."""
    assert most([40.0, 100.0], SHARE, RATIO) == pytest.approx(60.0)
    assert most([40.0, 100.0], SHARE, RATIO, more=3) > 100.0
    assert most([40.0, 2.0**31], SHARE, RATIO, more=3) == pytest.approx(240.0)  # 0.6 of 400
    assert most([40.0], SHARE, RATIO, more=1) > 40.0


def test_each_merchant_that_is_cut_is_named_once(caplog):
    logged: set[str] = set()
    for _ in range(3):
        counts = Counts(SHARE, RATIO, logged=logged)
        uplinks = [sent("a", 10), sent("b", 12), sent("byzantine", MOST_EXAMPLES)]
        counts.learn(uplinks)
        cut = [counts.cut(uplink) for uplink in uplinks]
        assert cut[:2] == uplinks[:2]
        assert cut[2].examples == 33  # 0.6 of 55
        assert counts.cut(sent("later", MOST_EXAMPLES)).examples == 33  # of a later chunk
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split()[4] for line in lines] == ["byzantine", "later"]


def test_uses_of_rows_are_cut_together_in_whatever_payload_they_come(caplog):
    counts = Counts(SHARE, RATIO)
    uplinks = [sent("a", 10), sent("b", 10), sent("byzantine", 10, (2**31 - 1, 1))]
    counts.learn(uplinks)
    found = counts.cut(uplinks[2]).need(StudentUpdate).counts["table"]
    assert float(found.sum()) == pytest.approx(21.0)  # 0.6 of 7 + 7 + 21
    assert "truncated, in this round and possibly in others: its uses of table rows (" in caplog.text
    assert counts.cut(uplinks[0]) is uplinks[0]
    values = uplinks[2].need(StudentUpdate)
    update = LowRankUpdate(PartialWeights(values.arrays, values.rows, values.counts))
    factored = counts.cut(replace(uplinks[2], payloads=(update,))).need(LowRankUpdate)
    assert torch.equal(factored.plain.counts["table"], found)


def test_counts_of_whole_tables_are_refused_before_anybody_is_measured_by_them():
    """One merchant alone that has them would leave the others without such a size."""
    context = Context({"table": torch.zeros(4, 2), "bias": torch.zeros(2)}, 0, 0)
    honest = sent("a", 10).need(StudentUpdate)
    odd = honest.with_counts({**honest.counts, "bias": torch.tensor([9, 9])})
    chunks = [Chunk((Uplink("byzantine", 10, (odd,)), sent("b", 10), sent("c", 10)))]
    intake = UplinkValidator(chunks, context, 3, 1, counts=Counts(SHARE, RATIO))
    assert [uplink.merchant for uplink in intake] == ["b", "c"]
    assert intake.refusals[0].reason == "merchant byzantine: counts of 'bias' have no row numbers"


def test_who_uses_no_row_is_no_measure_for_who_does():
    counts = Counts(SHARE, RATIO)
    uplinks = [sent("a", 10, (0, 0)), sent("b", 10, (0, 0)), sent("c", 10, (5, 6))]
    counts.learn(uplinks)
    assert [counts.cut(uplink) for uplink in uplinks] == uplinks


@pytest.mark.parametrize("chosen", [[0], [0, 1], list(range(8))])
@pytest.mark.parametrize("weight", ["uses", "examples", "merchants"])
def test_a_byzantine_merchant_counts_in_rows_for_no_more_than_its_limits_on_whatever_rows_it_lays_its_uses(
    weight, chosen
):
    """Honest merchants send zeros and the byzantine ones, so that a row's value is the byzantine's share of it."""
    current = {"table": torch.zeros(8, 1), "bias": torch.zeros(1)}
    uses = torch.tensor([40, 20, 10, 5, 4, 3, 2, 1])
    values = {"table": torch.zeros(8, 1), "bias": torch.zeros(1)}
    honest = [
        Uplink(name, 50, (StudentUpdate(values, {"table": torch.arange(8)}, {"table": uses}),))
        for name in ("a", "b", "c")
    ]
    rows = torch.tensor(chosen)
    lies = {"table": torch.ones(len(rows), 1), "bias": torch.ones(1)}
    byzantine = Uplink(
        "d", MOST_EXAMPLES, (StudentUpdate(lies, {"table": rows}, {"table": torch.full((len(rows),), 2**31 - 1)}),)
    )
    counts = Counts(SHARE, RATIO)
    counts.learn([*honest, byzantine])
    merged = FedSubAvg(weight).average(current, [counts.cut(uplink) for uplink in [*honest, byzantine]])
    assert float(merged["bias"]) == pytest.approx(SHARE)
    shares = merged["table"].flatten().double()
    beside = {"uses": 3.0 * uses, "examples": torch.full((8,), 150.0), "merchants": torch.full((8,), 3.0)}[weight]
    counted = shares / (1.0 - shares) * beside  # what the byzantine counted for in each row
    if weight == "uses":
        assert float(counted.sum()) <= SHARE / (1.0 - SHARE) * 3 * 85 * 1.0001
        assert float(counted.max()) <= USES_PER_EXAMPLE * 225 * 1.0001
    else:
        limit = 225.0 if weight == "examples" else 1.0
        torch.testing.assert_close(counted[rows], torch.full((len(rows),), limit).double(), rtol=1e-4, atol=0.0)


CHANGES = {
    "controls": [],
    "adaptation.enabled": False,
    "federation.rounds": 1,
    "federation.method": "fedavg",
    "federation.options": {},
    "federation.max_norm_ratio": None,  # which would leave the byzantine out for the size of its lie
    "runtime.measure_speed": False,
}
UNITS = {
    "none": {},
    "example": {"privacy.unit": "example", "privacy.epsilon": 8.0, "privacy.training.optimizer": "sgd"},
}
UNLIMITED = {"federation.max_share": None, "federation.max_size_ratio": None}


class Claiming:
    """The honest app, but that one merchant announces and claims as much as there can be, and sends ones."""

    def __init__(self):
        self.inner, self.uplinks, self.byzantine = build_app(), {}, ""

    def __call__(self, message, context):
        reply = self.inner(message, context)
        if message.metadata.message_type == QUERY_MERCHANTS and "examples" in reply.content["merchants"]:
            reply.content["merchants"]["examples"] = [MOST_EXAMPLES] * len(reply.content["merchants"]["names"])
        if message.metadata.message_type == TRAIN:
            self.lie(reply.content)
            parts = [part for prefix, part in by_prefix(reply.content).items() if prefix.endswith("/")]
            self.uplinks = {up.merchant: up for up in (decode_uplink(part, (StudentUpdate,)) for part in parts)}
        return reply

    def lie(self, content):
        self.byzantine, content["0/up"]["examples"] = content["0/up"]["merchant"], MOST_EXAMPLES
        for name, array in content["0/up.update"].items():
            content["0/up.update"][name] = Array(torch.ones(array.shape).numpy())
        for name, array in content["0/up.counts"].items():
            content["0/up.counts"][name] = Array(torch.full(array.shape, 2**31 - 1, dtype=torch.int32).numpy())


def merged_by_hand(start, uplinks, submodels, limited=True):
    """WeightedMean, or FedSubAvg, written out, with what merchants count for cut by ``slow_limit``."""
    limit = slow_limit([up.examples for up in uplinks], SHARE, RATIO) if limited else MOST_EXAMPLES
    examples = [min(up.examples, int(limit + 1e-6)) for up in uplinks]
    merged = {}
    for name, value in start.items():
        top, bottom = torch.zeros_like(value).double(), torch.zeros(len(value)).double()
        sent = [up.need(StudentUpdate) for up in uplinks]
        uses = [float(one.counts[name].sum()) if name in one.rows else 0.0 for one in sent]
        most_uses = slow_limit(uses, SHARE, RATIO) if limited and all(uses) else max(uses)
        for one, size, used in zip(sent, examples, uses, strict=True):
            rows = one.rows.get(name, torch.arange(len(value)))
            weight = torch.full((len(rows),), float(size)).double()
            if submodels and name in one.rows:
                counts = one.counts[name].double() * min(1.0, most_uses / used)
                weight = counts.clamp_max(float(USES_PER_EXAMPLE * size))
            shape = (-1, *[1] * (value.dim() - 1))
            top[rows] += weight.view(shape) * one.arrays[name].double()
            bottom[rows] += weight
        if not submodels:
            bottom[:] = float(sum(examples))
        merged[name] = value.double() + top / torch.where(bottom > 0, bottom, 1.0).view(shape)
    return merged


def flat(weights):
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("aggregator", ["fedavg", "fedsubavg"])
def test_a_merchant_that_claims_2_31_examples_moves_the_student_by_no_more_than_its_limit(
    tiny_experiment, simulate, tmp_path, aggregator, unit
):
    app, submodels = Claiming(), aggregator == "fedsubavg"
    changes = {**CHANGES, **UNITS[unit], "federation.aggregator": aggregator}

    def run(name, more):
        folder, _ = simulate(tiny_experiment(tmp_path / name, {**changes, **more}), app=app)
        (start,), (end,) = (
            (folder / "checkpoint" / "seed-0").glob(f"{what}/final.safetensors")
            for what in ("server/*", "federations/*")
        )
        uplinks = [up for _, up in sorted(app.uplinks.items())]
        return load_file(start), uplinks, load_file(end)

    start, uplinks, end = run("limited", {})
    by_hand = merged_by_hand(start, uplinks, submodels)
    torch.testing.assert_close(flat(end), flat(by_hand), rtol=1e-5, atol=1e-6)
    honest = merged_by_hand(start, [up for up in uplinks if up.merchant != app.byzantine], submodels)
    whole = [name for name in start if name not in uplinks[0].need(StudentUpdate).rows]
    assert whole
    for name in whole if submodels else start:
        lie = next(up for up in uplinks if up.merchant == app.byzantine).need(StudentUpdate)
        sent = start[name].double()
        sent[lie.rows.get(name, slice(None))] += lie.arrays[name].double()
        assert float((end[name] - honest[name]).norm()) <= SHARE * float((sent - honest[name]).norm()) + 1e-5
    start, uplinks, end = run("unlimited", UNLIMITED)
    torch.testing.assert_close(
        flat(end), flat(merged_by_hand(start, uplinks, submodels, limited=False)), rtol=1e-5, atol=1e-6
    )
    for name in whole:  # the attack: without limits the student moves as that merchant says
        torch.testing.assert_close(end[name], start[name] + 1.0, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_the_limit_is_on_what_examples_count_for(power):
    """Squared, as least-variance weights under privacy are, a merchant is no more than its share of the squares."""
    current = {"bias": torch.zeros(1)}
    uplinks = [
        Uplink(name, size, (StudentUpdate({"bias": torch.zeros(1)}),))
        for name, size in {"a": 900, "b": 1000, "c": 1200}.items()
    ]
    uplinks.append(Uplink("byzantine", MOST_EXAMPLES, (StudentUpdate({"bias": torch.ones(1)}),)))
    counts = Counts(SHARE, RATIO, power)
    counts.learn(uplinks)
    merged = WeightedMean("examples" if power == 1 else "examples-squared").average(current, map(counts.cut, uplinks))
    assert SHARE - 2e-3 < float(merged["bias"]) <= SHARE + 1e-6
