"""Whose uplinks are merged, what is counted on the way, and when a round has too few."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.sites import Chunk
from fed_distill.coordinator.uplink_validator import UplinkValidator, update_norm
from fed_distill.errors import BudgetExceeded, TooFewAnswers, TrainingError
from fed_distill.mechanisms.merchant import PrivateMean
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedavg import FedAvg
from fed_distill.methods.local import Local
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes
from fed_distill.transport.messages import Uplink
from fed_distill.transport.requests import Refusal


@pytest.fixture
def state():
    return GlobalState(0, {"w": torch.zeros(2)}, torch.full((3, 2), 0.5))


@pytest.fixture
def server():
    """Its aggregator takes the last merchant's update of a student of zeros."""
    return SimpleNamespace(average=lambda _, up: [one.need(StudentUpdate).arrays for one in up][-1])


@pytest.fixture
def context(state):
    return Context(state.weights, 3, 2)


def good(name, loss=1.0, **metrics):
    return Uplink(name, 1, (StudentUpdate({"w": torch.ones(2)}),), metrics={"loss": loss, **metrics})


def bad(name):
    return Uplink(name, 1, (StudentUpdate({"w": torch.tensor([1.0, math.nan])}),), metrics={"loss": 1.0})


def in_part(name):
    rows = torch.tensor([1])
    return Uplink(name, 1, (StudentUpdate({"w": torch.ones(1)}, {"w": rows}, {"w": rows}),), metrics={"loss": 1.0})


def without_weights(name):
    return Uplink(name, 1, metrics={"loss": 1.0})


def chunk(*uplinks, **other):
    return Chunk(tuple(uplinks), **other)


def names(uplinks):
    return [uplink.merchant for uplink in uplinks]


def test_unfit_uplinks_are_left_out_and_counted_with_the_refusals(context):
    refused = Refusal("d", "d has no data")
    intake = UplinkValidator([chunk(good("a"), bad("b"), good("c"), refusals=(refused,))], context, 4, 7)
    assert names(intake) == intake.merchants == ["a", "c"]
    assert names(intake.refusals) == ["d", "b"]
    assert "merchant b: w has values that are not finite" in intake.refusals[1].reason


def voting(name):
    return good(name).having(Votes(torch.zeros(3, dtype=torch.int64)))


@pytest.mark.parametrize("odd", [without_weights("b"), in_part("b"), voting("b")])
def test_an_uplink_with_other_parts_than_most_have_is_left_out(context, odd):
    intake = UplinkValidator([chunk(good("a"), odd, good("c"))], context, 3, 1)
    assert names(intake) == ["a", "c"]
    assert intake.refusals[0].reason == "merchant b: the parts of its uplink differ from those of most merchants"


def test_what_most_have_is_what_most_fit_ones_have_in_the_first_chunk_with_any(context):
    chunks = [
        chunk(refusals=(Refusal("a", "ill"),)),
        chunk(bad("b"), bad("c")),
        chunk(bad("d"), bad("e"), in_part("f"), good("g"), in_part("h")),
        chunk(good("i"), good("j"), good("k"), in_part("l")),
    ]
    intake = UplinkValidator(chunks, context, 6, 1)
    assert names(intake) == ["f", "h", "l"]
    assert names(intake.refusals) == ["a", "b", "c", "d", "e", "g", "i", "j", "k"]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    ("fit", "asked", "enough"), [(1, 2, True), (2, 5, False), (3, 5, True), (1, 1, True), (0, 1, False)]
)
def test_half_of_those_asked_must_be_fit(context, fit, asked, enough, size):
    uplinks = [good(f"g{number}") for number in range(fit)] + [bad(f"x{number}") for number in range(asked - fit)]
    intake = UplinkValidator(
        [chunk(*uplinks[first : first + size]) for first in range(0, asked, size)], context, asked, 3
    )
    if enough:
        assert len(list(intake)) == fit
    else:
        with pytest.raises(
            TrainingError, match=rf"round 3: only {fit} of {asked} merchants can be merged; merchant x0: w"
        ):
            list(intake)


def test_silence_of_most_is_said_to_be_silence(context):
    with pytest.raises(TrainingError, match="only 1 of 4 merchants can be merged; the other merchants did not answer"):
        list(UplinkValidator([chunk(good("a"))], context, 4, 1))


def passing(name, cause="late"):
    return Refusal(name, f"merchant {name}: {cause}", cause)


@pytest.mark.parametrize("cause", ["late", "absent", "hours"])
def test_too_few_may_be_enough_another_time_if_what_keeps_the_others_passes(context, cause):
    refusals = (Refusal("x", "x lies"), passing("y", cause), passing("z", cause))
    with pytest.raises(TooFewAnswers, match=f"only 1 of 4 merchants can be merged; merchant y: {cause}"):
        list(UplinkValidator([chunk(good("a"), refusals=refusals)], context, 4, 1))
    with pytest.raises(TrainingError, match="only 1 of 4 merchants can be merged; x lies") as found:
        list(
            UplinkValidator([chunk(good("a"), refusals=refusals)], context, 4, 1, share=0.8)
        )  # z and y would be 3 of 4
    assert not isinstance(found.value, TooFewAnswers)


def test_those_without_budget_do_not_count_and_those_who_rest_may_come_back(context):
    spent = [Refusal(name, f"{name} has spent it", "budget") for name in "xyz"]
    assert names(UplinkValidator([chunk(good("a"), refusals=tuple(spent))], context, 4, 1, share=1.0)) == ["a"]
    with pytest.raises(BudgetExceeded, match="x has spent it"):
        list(UplinkValidator([chunk(refusals=tuple(spent))], context, 3, 1))
    with pytest.raises(TooFewAnswers, match="merchant r: hours"):
        list(UplinkValidator([chunk(refusals=(*spent, passing("r", "hours")))], context, 4, 1))


def test_faults_of_the_others_are_not_taken_for_a_spent_budget(context):
    spent = Refusal("x", "x has spent it", "budget")
    intake = UplinkValidator([chunk(refusals=(spent, Refusal("", "site 7 failed")))], context, 4, 1)
    with pytest.raises(TrainingError, match="only 0 of 4 merchants can be merged"):
        list(intake)
    assert intake.causes == {"budget": 1, "fault": 3}  # those whom a failed site did not name among them


def test_what_became_of_each_merchant_is_counted(context):
    refusals = (passing("b"), passing("c", "absent"), passing("d", "hours"), Refusal("", "site 7 failed: fire"))
    intake = UplinkValidator([chunk(good("a"), bad("e"), refusals=refusals)], context, 8, 1, share=0.1)
    intake.finish()
    assert intake.answers == {"asked": 8, "merged": 1, "late": 1, "absent": 1, "resting": 1, "refused": 4}


def moved(name, far):
    return Uplink(name, 1, (StudentUpdate({"w": torch.tensor([0.0, far])}),), metrics={"loss": 1.0})


def test_an_update_far_longer_than_most_is_left_out(context):
    uplinks = [moved("a", 1.0), moved("b", -3.0), moved("c", 2.0), moved("d", 20.1), moved("e", 19.9)]
    chunks = [chunk(*uplinks[:3]), chunk(*uplinks[3:])]
    intake = UplinkValidator(chunks, context, 5, 1, max_norm_ratio=10.0)
    assert names(intake) == ["a", "b", "c", "e"]
    assert [refusal.reason for refusal in intake.refusals] == [
        "merchant d: its update has a norm of 20.1, and the median norm is 2"
    ]
    assert names(UplinkValidator([chunk(*uplinks)], context, 5, 1)) == ["a", "b", "c", "d", "e"]
    still = [moved("a", 0.0), moved("b", 0.0), moved("c", 1.0)]  # nobody moves: there is nothing to compare with
    assert names(UplinkValidator([chunk(*still)], context, 3, 1, max_norm_ratio=10.0)) == ["a", "b", "c"]


def test_a_byzantine_merchant_of_the_first_chunk_does_not_raise_the_norm_that_is_usual(context):
    """Of the mean, 2.5e8 + 1.5, an update of 1e9 would be no more than 10 times; the median of four is (2 + 3) / 2."""
    uplinks = [moved("a", 1.0), moved("b", 2.0), moved("byzantine", 1e9), moved("c", 3.0)]
    intake = UplinkValidator([chunk(*uplinks), chunk(moved("d", 24.9), moved("e", 25.1))], context, 6, 1, 0.5, 10.0)
    assert names(intake) == ["a", "b", "c", "d"]
    assert names(intake.refusals) == ["byzantine", "e"]


def test_claims_of_the_first_chunk_are_measured_by_the_whole_round(context):
    """Beside 40 and three more taken to be 40 each, 100 are below 0.6 of all, and above it beside 40 alone; 800 are 20
    times the median."""
    claims = {"a": 40, "b": 100, "c": 40, "d": 40, "e": 1000}
    uplinks = [replace(good(name), examples=examples) for name, examples in claims.items()]
    for chunks, kept in (([uplinks[:2], uplinks[2:]], [40, 100, 40, 40, 800]), ([uplinks[:2]], [40, 60])):
        asked = sum(map(len, chunks))
        found = UplinkValidator([chunk(*one) for one in chunks], context, asked, 1, counts=Counts(0.6, 20.0))
        assert [uplink.examples for uplink in found] == kept


def of_norm(name, norm):
    return Uplink(name, 1, (StudentUpdate({"w": torch.tensor([norm, 0.0])}),), metrics={"loss": 1.0})


def test_under_merchant_level_privacy_one_merchant_changes_the_clipped_sum_by_one_update_at_most(state, context):
    """The accountants' sensitivity; if they were compared, one more that is short would have all long ones out."""
    everybody = [
        *(of_norm(f"a{place}", 2e-5) for place in range(10)),
        *(of_norm(f"b{place}", 2.0) for place in range(10)),
    ]

    def clipped_sum(uplinks):
        mean = PrivateMean(0.0, expected_merchants=1.0, clip_norm=1.0, randomness=(0,))
        intake = UplinkValidator(
            [chunk(*uplinks)], context, len(uplinks), 1, 0.0, max_norm_ratio=1000.0, compared=False
        )
        return mean.average(state.weights, intake)["w"]

    whole = clipped_sum(everybody)
    for one in [*everybody, of_norm("c", 1e-9), of_norm("d", 1e9)]:
        others = [each for each in everybody if each is not one]
        more = whole if one in everybody else clipped_sum([*everybody, one])
        assert float((more - clipped_sum(others)).norm()) <= 1.0 + 1e-6


def test_where_nobody_is_compared_an_update_is_all_that_is_asked_of_an_uplink(context):
    uplinks = [without_weights("a"), in_part("b"), of_norm("c", 1e6), good("d"), bad("e")]
    intake = UplinkValidator([chunk(*uplinks)], context, 5, 1, max_norm_ratio=10.0, compared=False)
    assert names(intake) == ["b", "c", "d"]
    assert [refusal.reason for refusal in intake.refusals] == [
        "merchant e: w has values that are not finite",
        "merchant a: its uplink has no update of weights",
    ]


def test_the_norm_is_that_of_the_whole_update():
    """Of sent rows, of factors multiplied out, and of control variates, beside those of whole weights."""
    rows = torch.tensor([2])
    part = PartialWeights({"w": torch.tensor([3.0, 0.0]), "t": torch.tensor([[0.0, 4.0]])}, {"t": rows}, {"t": rows})
    assert update_norm(Uplink("a", 1, (StudentUpdate.of(part),))) == 5.0  # moved by 3 and 4
    variates = Uplink("a", 1, (StudentUpdate.of(part), ControlVariate({"w": torch.tensor([12.0, 0.0])})))
    assert update_norm(variates) == 13.0
    thin, wide = {"t": torch.full((1, 4), 2.0)}, {"t": torch.tensor([[3.0, 0.0]])}
    factors = Uplink("a", 1, (LowRankUpdate(PartialWeights({}), thin, wide),))
    assert update_norm(factors) == 12.0  # four rows of 6
    assert update_norm(Uplink("a", 1)) == 0.0


def test_too_few_end_a_merge_before_there_is_a_new_state(state, context, server):
    with pytest.raises(TrainingError, match="only 1 of 4"):
        FedAvg().merge(state, UplinkValidator([chunk(good("a"), bad("b"))], context, 4, 1), server)


def test_what_a_method_leaves_is_counted_when_the_round_is_finished(state, context, server):
    intake = UplinkValidator([chunk(good("a", 2.0)), chunk(good("b", 4.0), bad("c"))], context, 3, 1)
    Local().merge(state, intake, server)
    assert intake.merchants == []
    intake.finish()
    assert (intake.merchants, names(intake.refusals), intake.train_loss) == (["a", "b"], ["c"], 3.0)
    few = UplinkValidator([chunk(good("a"))], context, 3, 1)
    Local().merge(state, few, server)
    with pytest.raises(TrainingError, match="only 1 of 3"):
        few.finish()


def test_a_chunk_is_taken_in_when_the_one_before_is_merged(context):
    taken = []

    def chunks():
        for name in "abc":
            taken.append(name)
            yield chunk(good(name))

    merged = []
    for uplink in UplinkValidator(chunks(), context, 3, 1):
        merged.append(uplink.merchant)
        assert taken == merged


def test_losses_and_bytes_are_means_over_all_chunks(context):
    chunks = [
        chunk(good("a", 1.0), bad("b"), downlink_bytes=30, uplink_bytes=100),
        chunk(good("c", 2.0), good("d", 6.0), refusals=(Refusal("e", "ill"),), downlink_bytes=20, uplink_bytes=50),
    ]
    intake = UplinkValidator(chunks, context, 5, 1)
    intake.finish()
    assert intake.train_loss == 3.0
    assert intake.bytes == {"downlink": 50 / 5, "uplink": 150 / 4}


def test_own_test_counts_leave_out_merchants_without_a_test(context):
    measured = good("a", test_right=3.0, test_count=4.0)
    untested = good("b", test_right=0.0, test_count=0.0)
    intake = UplinkValidator([chunk(measured, untested, good("c"))], context, 3, 1)
    intake.finish()
    assert intake.own_counts == {"a": (3, 4)}


def test_an_update_of_other_weights_than_most_send_is_left_out():
    """Whether one is factored is each merchant's own affair; which weights there are is not."""
    context = Context({"w": torch.zeros(2), "m": torch.zeros(4, 3)}, 3, 2)

    def update(name, arrays, thin=()):
        factors = {one: torch.ones(1, 4) for one in thin}, {one: torch.ones(1, 3) for one in thin}
        return Uplink(name, 1, (LowRankUpdate(PartialWeights(arrays), *factors),))

    w, m = {"w": torch.ones(2)}, {"m": torch.ones(4, 3)}
    sent = [update("a", w, ["m"]), update("b", w), update("c", {**w, **m}), update("d", w, ["m"])]
    intake = UplinkValidator([chunk(*sent)], context, 4, 1)
    assert names(intake) == ["a", "c", "d"]
    assert names(intake.refusals) == ["b"]
