"""The server's view of the sites: who hosts whom, and answers that nobody was asked for."""

import math

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.config import TransportConfig
from fed_distill.coordinator.sites import CHUNK_BYTES, PLAIN, Chunk, Sites, chunk_size
from fed_distill.errors import DataError, TrainingError
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.mechanisms.account import Spent
from fed_distill.payloads.base import Context
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import (
    encode_downlink,
    encode_uplink,
    prefixed,
    serialized_bytes,
    to_array_record,
)
from fed_distill.transport.requests import ANSWER, PROTOCOL, TRAIN, TrainRequest

ANNOUNCED = 2
HELD = {0: ["a", "d"], 1: ["b"], 2: ["c"]}


class LateGrid(InProcessGrid):
    """Like a real grid: a pull gives only what is there, here the last message's reply, and notes what was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        self.asked.append(ids)
        return super().pull_messages(ids[-1:])


class FullGrid(InProcessGrid):
    """A grid that refuses messages to its second site in the way that Flower's grids do."""

    def push_messages(self, messages):
        return [
            None if message.metadata.dst_node_id == 3 else super(FullGrid, self).push_messages([message])[0]
            for message in messages
            if message.metadata.message_type == TRAIN
        ] or super().push_messages(messages)


class SlowGrid(InProcessGrid):
    """A grid whose second site is only seen when it is asked for the third time."""

    asked = 0

    def get_node_ids(self):
        self.asked += 1
        nodes = super().get_node_ids()
        return nodes if self.asked >= 3 else nodes[:1]


def make_sites(held=HELD, answers=None, counts=None, spent=None, grid=InProcessGrid, **waiting):
    """Sites that hold merchants, answer a training with ``answers`` (by site) or honestly, and give ``counts`` and what
    their ledgers have ``spent``, or fail to."""
    app = ClientApp()

    def number_of(context):
        return int(context.node_config["partition-id"])

    @app.query("merchants")
    def merchants(message, context):
        if held[number_of(context)] is None:
            raise RuntimeError("disk on fire")
        names = held[number_of(context)]
        record = ConfigRecord({"names": names, "examples": [ANNOUNCED] * len(names), "protocol": PROTOCOL})
        return Message(RecordDict({"merchants": record}), reply_to=message)

    @app.train("merchants")
    def train(message, context):
        request = TrainRequest.from_record(message.content.config_records["request"])
        own = (answers or {}).get(number_of(context))
        number = message.content.config_records["down"]["round"]
        content = RecordDict({ANSWER: ConfigRecord({"to": request.title(number)})})
        for place, answer in enumerate(own or [Uplink(name, 1, metrics={"loss": 1.0}) for name in request.merchants]):
            single = answer if isinstance(answer, RecordDict) else encode_uplink(answer)
            content.update(prefixed(single, f"{place}/"))
        return Message(content, reply_to=message)

    @app.evaluate("merchants")
    def evaluate(message, context):
        found = (counts or {}).get(number_of(context))
        content = RecordDict() if found is None else RecordDict({"counts": MetricRecord(found)})
        return Message(content, reply_to=message)

    @app.query("privacy")
    def privacy(message, context):
        return Message(RecordDict({"spent": MetricRecord(spent[number_of(context)])}), reply_to=message)

    return Sites(grid(app, {}, sites=len(held)), **waiting)


def grid_of(sites):
    return sites._exchange._grid


def late_sites():
    """Sites behind a LateGrid, which has forgotten that it was asked who there is."""
    sites = make_sites(grid=LateGrid, poll_seconds=0.0)
    grid_of(sites).asked.clear()
    return sites


def request(*merchants):
    return TrainRequest("fedavg", 0, merchants, ("s",) * len(merchants), {"s": "{}"}, (1,) * len(merchants), 3)


def whole(chunks):
    """All chunks of a round as one."""
    found = list(chunks)
    return Chunk(
        tuple(uplink for one in found for uplink in one.uplinks),
        tuple(refusal for one in found for refusal in one.refusals),
        sum(one.downlink_bytes for one in found),
        sum(one.uplink_bytes for one in found),
    )


def test_merchants_of_all_sites_are_known_sorted():
    assert make_sites().merchants == ["a", "b", "c", "d"]


def test_a_run_waits_for_its_sites():
    held = {0: ["a"], 1: ["b"]}
    assert make_sites(held, grid=SlowGrid).merchants == ["a"]
    assert make_sites(held, grid=SlowGrid, minimum=2, poll_seconds=0.0).merchants == ["a", "b"]


def test_a_merchant_at_two_sites_takes_no_part_and_ends_no_run(caplog):
    assert make_sites({0: ["a", "b"], 1: ["b"], 2: ["c"]}).merchants == ["a", "c"]
    assert "b announced by site 2, site 3: a merchant belongs to one site" in caplog.text
    with pytest.raises(DataError, match="no site has a merchant: b announced by site 2, site 3: a merchant belongs"):
        make_sites({0: ["b"], 1: ["b"]})


def test_sites_without_merchants_are_said():
    with pytest.raises(DataError, match="no site has a merchant: all sites announced none"):
        make_sites({0: [], 1: []})
    with pytest.raises(DataError, match=r"no site has a merchant: site 2 failed: .*disk on fire"):
        make_sites({0: None})


def test_a_site_that_fails_is_left_out():
    assert make_sites({0: ["a"], 1: None, 2: ["c"]}).merchants == ["a", "c"]


@pytest.mark.parametrize("grid", [InProcessGrid, LateGrid])
@pytest.mark.parametrize(
    ("chunk", "expected"), [(1, ["a", "b", "c", "d"]), (2, ["ab", "cd"]), (3, ["abc", "d"]), (9, ["abcd"])]
)
def test_uplinks_come_in_chunks_of_consecutive_merchants_whoever_hosts_them(grid, chunk, expected):
    sites = make_sites(grid=grid, poll_seconds=0.0)
    chunks = list(sites.train(request("d", "c", "b", "a"), Downlink(1), {}, chunk))
    assert ["".join(uplink.merchant for uplink in one.uplinks) for one in chunks] == expected
    assert all(one.refusals == () for one in chunks)


def test_replies_that_are_not_there_yet_are_asked_for_again():
    sites = late_sites()
    list(sites.train(request("a", "b", "c", "d"), Downlink(1), {}))
    first, *others = grid_of(sites).asked
    assert len(first) == 3
    assert others == [first[:2], first[:1]]


def test_all_sites_are_asked_at_once_and_a_chunk_is_pulled_when_it_is_wanted():
    sites = late_sites()
    chunks = sites.train(request("a", "b", "c", "d"), Downlink(1), {}, 2)
    assert len(grid_of(sites)._queued) == 4  # a at site 2 and b at 3; c at 4 and d at 2
    assert grid_of(sites).asked == []
    next(chunks)
    assert len(grid_of(sites)._queued) == 2


def test_each_message_asks_a_site_for_its_own_merchants_of_the_chunk_with_their_students():
    seen = []

    class Watched(InProcessGrid):
        def _queue(self, message_id, message):
            if message.metadata.message_type == TRAIN:
                asked = TrainRequest.from_record(message.content.config_records["request"])
                starts = sorted(name for name in message.content if name.startswith("start."))
                seen.append((message.metadata.dst_node_id, asked.merchants, asked.students, asked.rounds, starts))
            super()._queue(message_id, message)

    mixed = TrainRequest("fedmd", 0, ("d", "a", "c", "b"), ("s4", "s1", "s3", "s2"), {}, (4, 1, 3, 2), 4)
    starts = {"d": {"s4": {"w": torch.zeros(1)}}, "a": {"s1": {"w": torch.zeros(1)}}}
    list(make_sites(grid=Watched).train(mixed, Downlink(1), starts, 3))
    assert seen == [
        (2, ("a",), ("s1",), (1,), ["start.s1"]),
        (3, ("b",), ("s2",), (2,), []),
        (4, ("c",), ("s3",), (3,), []),
        (2, ("d",), ("s4",), (4,), ["start.s4"]),
    ]


def test_a_request_that_cannot_be_sent_is_a_refusal():
    (chunk,) = make_sites(grid=FullGrid).train(request("a", "b", "c"), Downlink(1), {})
    assert [uplink.merchant for uplink in chunk.uplinks] == ["a", "c"]
    assert [refusal.reason for refusal in chunk.refusals] == ["site 3 failed: its request could not be sent"]


@pytest.mark.parametrize(
    ("student_bytes", "merchants"),
    [(8 * 2**20, 256), (CHUNK_BYTES // 100, 100), (1000, 1024), (2**30, 16), (2**27 + 1, 16), (2**26, 32)],
)
def test_a_chunk_holds_2_gib_of_students_within_its_limits(student_bytes, merchants):
    assert chunk_size(student_bytes) == merchants


def test_only_the_asked_merchants_train():
    assert [uplink.merchant for uplink in whole(make_sites().train(request("b", "d"), Downlink(1), {})).uplinks] == [
        "b",
        "d",
    ]


@pytest.mark.parametrize("chunk", [1, 2])
def test_bytes_are_those_of_a_merchants_own_records(chunk):
    long = Uplink("a", 1, (SoftLabels(torch.zeros(100, 4)),), metrics={"loss": 1.0})
    short = Uplink("b", 1, metrics={"loss": 1.0})
    down, start = Downlink(1, (StudentWeights({"w": torch.zeros(50)}),)), {"w": torch.zeros(30)}
    sites = make_sites({0: ["a"], 1: ["b"]}, {0: [long], 1: [short]})
    context = Context(down.weights, 100, 4)
    starts = {"b": {"s": start}}
    total = whole(sites.train(request("a", "b"), down, starts, chunk, kinds=(SoftLabels,), context=context))
    sizes = [serialized_bytes(encode_uplink(uplink)) for uplink in (long, short)]
    assert total.uplink_bytes == sum(sizes)
    assert sizes[0] > 100 * 4 * 4 > sizes[1]
    alone = serialized_bytes(RecordDict({**encode_downlink(down), "request": request("a").to_record()}))
    assert total.downlink_bytes == 2 * alone + serialized_bytes(RecordDict({"start.s": to_array_record(start)}))


UNASKED = "site {} sent unrequested answers; dropped: 1"
NOTHING = "merchant {}: site {} sent no answer for it"
REFUSED = RecordDict({"refusal": ConfigRecord({"merchant": "b", "reason": "budget spent"})})


@pytest.mark.parametrize(
    ("answers", "accepted", "reasons"),
    [
        ({1: [Uplink("c", 1)]}, ["a", "c", "d"], [UNASKED.format(3), NOTHING.format("b", 3)]),
        ({1: [Uplink("ghost", 1)]}, ["a", "c", "d"], [UNASKED.format(3), NOTHING.format("b", 3)]),
        ({0: [Uplink("a", 1), Uplink("a", 2)]}, ["a", "b", "c"], [UNASKED.format(2), NOTHING.format("d", 2)]),
        ({1: [Uplink("b", 3)]}, ["a", "c", "d"], ["merchant b: it has 3 training examples, but announced 2"]),
        (
            {1: [RecordDict({"up": ConfigRecord({"merchant": "b"})})]},
            ["a", "c", "d"],
            ["merchant b: an uplink could not be read: KeyError"],
        ),
        ({1: [REFUSED]}, ["a", "c", "d"], ["merchant b: budget spent"]),
        ({1: [RecordDict({**REFUSED, **encode_uplink(Uplink("b", 1))})]}, ["a", "c", "d"], ["budget spent"]),
        (
            {1: [RecordDict({"refusal": ConfigRecord({})})]},
            ["a", "c", "d"],
            [UNASKED.format(3), NOTHING.format("b", 3)],
        ),
    ],
)
def test_answers_that_cannot_be_used_are_refusals_that_say_why(answers, accepted, reasons):
    replies = whole(make_sites(answers=answers).train(request("a", "b", "c", "d"), Downlink(1), {}))
    assert [uplink.merchant for uplink in replies.uplinks] == accepted
    assert [reason in one.reason for reason, one in zip(reasons, replies.refusals, strict=True)] == [True] * len(
        reasons
    )


def test_a_merchant_that_answers_before_its_chunk_is_asked_is_not_taken_then():
    """The order of merging stays that of the merchants, whatever a site sends."""
    eager = {0: [Uplink("d", 1), Uplink("a", 1)]}
    first, second = make_sites(answers=eager).train(request("a", "b", "c", "d"), Downlink(1), {}, 2)
    assert [uplink.merchant for uplink in first.uplinks] == ["a", "b"]
    assert [refusal.reason for refusal in first.refusals] == [UNASKED.format(2)]
    assert [uplink.merchant for uplink in second.uplinks] == ["c", "d"]
    assert second.refusals == ()  # a site is told of once a round


def test_a_reply_of_very_many_answers_is_one_refusal_and_one_line_and_none_is_decoded(monkeypatch, caplog):
    decoded = []
    monkeypatch.setattr(
        "fed_distill.coordinator.sites.Codec.decode_uplink",
        lambda codec, content, **_: decoded.append(content) or Uplink(content["up"]["merchant"], 1),
    )
    flood = [RecordDict({"up": ConfigRecord({"merchant": "c", "examples": 1})})] * 20_000
    replies = whole(make_sites(answers={1: [*flood, Uplink("b", 1)]}).train(request("b", "c"), Downlink(1), {}, 1))
    assert [uplink.merchant for uplink in replies.uplinks] == ["b", "c"]
    assert [refusal.reason for refusal in replies.refusals] == [UNASKED.format(3).replace(" 1", " 20,000")]
    assert len(decoded) == 2
    assert len(caplog.messages) == 1


def test_test_counts_are_collected_and_impossible_ones_left_out(caplog):
    counts = {0: {"a": [3, 4], "d": [5, 4]}, 1: {"c": [1, 1], "b": [0, 0]}, 2: None}
    found, untold = make_sites(counts=counts).evaluate(request("a", "b", "c", "d"), {"w": torch.zeros(1)})
    assert (found, untold) == ({"a": (3, 4)}, ["c", "d"])  # b has nothing to test on, and says so
    assert "merchant d: [5, 4] is not (correct, all)" in caplog.text
    assert UNASKED.format(3) in caplog.text


@pytest.mark.parametrize("size", [1.5, -1, 2**40])
def test_announced_sizes_that_are_no_numbers_of_examples_are_refused(monkeypatch, size):
    monkeypatch.setitem(globals(), "ANNOUNCED", size)
    with pytest.raises(DataError, match="invalid numbers of examples"):
        make_sites()


@pytest.mark.parametrize("found", [[0.1, 0.5], [1.0, float("inf")], [3.0, 2.0]])
def test_counts_that_are_no_counts_are_left_out(found):
    merchant, other = HELD[0][:2]
    sites = make_sites(counts={0: {merchant: found, other: [1, 2]}})
    assert sites.evaluate(request(merchant, other), {"w": torch.zeros(1)})[0] == {other: (1, 2)}


def test_refusals_for_others_count_once_and_reasons_are_cut_to_what_can_be_read():
    merchant = HELD[0][0]
    refusal = [("nobody", "x")] * 50 + [(merchant, "\x1b[31mred" + "e" * 5000)] * 2
    lies = [RecordDict({"refusal": ConfigRecord({"merchant": name, "reason": reason})}) for name, reason in refusal]
    found = whole(make_sites(answers={0: lies}).train(request(merchant), Downlink(1), {})).refusals
    assert len(found) == 2
    assert found[0].reason == UNASKED.format(2).replace(" 1", " 51")
    assert found[1].merchant == merchant
    assert found[1].reason.startswith(f"merchant {merchant}:  [31mredeee")
    assert len(found[1].reason) == 500


LEDGERS = {"merchants": 2, "epsilon": 1.5, "delta": 1e-5, "noise_least": 0.8, "noise_most": 0.9, "untold": 0}
LEDGERS |= {"epsilon_5": 1.5, "epsilon_6": 1.75}


def test_what_an_arm_has_cost_is_joined_over_the_sites():
    other = {**LEDGERS, "merchants": 1, "epsilon": 2.0, "noise_least": 0.7}
    sites = make_sites(spent={0: LEDGERS, 1: other, 2: {**dict.fromkeys(LEDGERS, 0), "epsilon": 0.0}})
    assert sites.spent("fedavg", 0) == Spent(3, 2.0, 1e-5, 0.7, 0.9, epsilon_5=1.5, epsilon_6=1.75)


@pytest.mark.parametrize(
    "lie",
    [
        {"epsilon": math.nan},
        {"noise_most": math.inf},
        {"noise_least": math.inf},
        {"delta": -1e-5},
        {"delta": 5.0},
        {"merchants": -3},
        {"merchants": 0.5},
        {"merchants": 1e300},
        {"merchants": 3},
        {"epsilon": [1.0, 2.0]},
        None,
    ],
)
def test_a_site_that_tells_nothing_to_be_believed_leaves_its_cost_untold(lie, caplog):
    """And ends no run: its rounds are trained and paid for."""
    told = {0: LEDGERS, 1: {**LEDGERS, "merchants": 1}}
    told[2] = {**LEDGERS, "merchants": 1, **lie} if lie else {"merchants": 1}
    found = make_sites(spent=told).spent("fedavg", 0)
    assert found == Spent(3, 1.5, 1e-5, 0.8, 0.9, 1, 1.5, 1.75)
    assert "the report of site 4 on its ledgers is invalid" in caplog.text


def test_what_a_silent_site_has_cost_is_untold():
    told = {0: LEDGERS, 1: {**LEDGERS, "merchants": 1}}
    assert make_sites(spent=told).spent("fedavg", 0) == Spent(3, 1.5, 1e-5, 0.8, 0.9, 1, 1.5, 1.75)


def test_noise_that_protects_nobody_costs_without_end():
    told = {0: {**LEDGERS, "epsilon": math.inf}, 1: {**LEDGERS, "merchants": 1}, 2: dict.fromkeys(LEDGERS, 0)}
    assert make_sites(spent=told).spent("fedavg", 0).epsilon == math.inf


@pytest.mark.parametrize("codec", [PLAIN, Codec.of(TransportConfig(downlink_soft_labels=("int8",)))])
def test_a_downlink_that_is_not_finite_is_named_with_its_round_and_not_sent(codec):
    sites, pushed = make_sites(), []
    grid_of(sites).push_messages = pushed.append
    down = Downlink(3, (SoftLabels(torch.tensor([[0.5, 0.5], [0.5, math.nan]])),))
    with pytest.raises(TrainingError, match=r"^fedavg, seed 0, round 3: soft_labels 'soft_labels' of the downlink"):
        sites.train(request("a", "b"), down, {}, codec=codec)
    starts = {"a": {"s": {"w": torch.tensor([math.inf])}}}
    with pytest.raises(TrainingError, match=r"^fedavg, seed 0, round 4: initial weights of student 's', 'w', of the"):
        sites.train(request("a", "b"), Downlink(4), starts, codec=codec)
    with pytest.raises(TrainingError, match=r"^fedavg, seed 0, evaluation at merchants: weights 'w' of the downlink"):
        sites.evaluate(request("a", "b"), {"w": torch.tensor([math.nan])})
    assert not pushed
