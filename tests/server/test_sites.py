"""The server's view of the sites: who hosts whom, and answers that nobody was asked for."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed_distill.errors import DataError
from fed_distill.runtime.grid import InProcessGrid
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import encode_uplink, prefixed, serialized_bytes
from fed_distill.transport.requests import TrainRequest
from server.sites import Sites

ANNOUNCED = 2
HELD = {0: ["a", "d"], 1: ["b"], 2: ["c"]}


class SlowGrid(InProcessGrid):
    """A grid whose second site is only seen when it is asked for the third time."""

    asked = 0

    def get_node_ids(self):
        self.asked += 1
        nodes = super().get_node_ids()
        return nodes if self.asked >= 3 else nodes[:1]


def make_sites(held=HELD, answers=None, counts=None, grid=InProcessGrid, **waiting):
    """Sites that hold merchants, answer a training with ``answers`` (by site) or honestly, and give ``counts``."""
    app = ClientApp()

    def number_of(context):
        return int(context.node_config["partition-id"])

    @app.query("merchants")
    def merchants(message, context):
        if held[number_of(context)] is None:
            raise RuntimeError("disk on fire")
        names = held[number_of(context)]
        record = ConfigRecord({"names": names, "examples": [ANNOUNCED] * len(names)})
        return Message(RecordDict({"merchants": record}), reply_to=message)

    @app.train("merchants")
    def train(message, context):
        request = TrainRequest.from_record(message.content.config_records["request"])
        own = (answers or {}).get(number_of(context))
        content = RecordDict()
        for place, answer in enumerate(own or [Uplink(name, 1, metrics={"loss": 1.0}) for name in request.merchants]):
            single = answer if isinstance(answer, RecordDict) else encode_uplink(answer)
            content.update(prefixed(single, f"{place}/"))
        return Message(content, reply_to=message)

    @app.evaluate("merchants")
    def evaluate(message, context):
        found = (counts or {}).get(number_of(context))
        content = RecordDict() if found is None else RecordDict({"counts": MetricRecord(found)})
        return Message(content, reply_to=message)

    return Sites(grid(app, {}, sites=len(held)), **waiting)


def request(*merchants):
    return TrainRequest("fedavg", 0, merchants, ("s",) * len(merchants), {"s": "{}"})


def test_merchants_of_all_sites_are_known_sorted():
    assert make_sites().merchants == ["a", "b", "c", "d"]


def test_a_run_waits_for_its_sites():
    held = {0: ["a"], 1: ["b"]}
    assert make_sites(held, grid=SlowGrid).merchants == ["a"]
    assert make_sites(held, grid=SlowGrid, minimum=2, poll_seconds=0.0).merchants == ["a", "b"]


def test_a_merchant_at_two_sites_is_refused():
    with pytest.raises(DataError, match="merchant 'b' is at two sites: each merchant belongs to one"):
        make_sites({0: ["a", "b"], 1: ["b"]})


def test_sites_without_merchants_are_said():
    with pytest.raises(DataError, match="no site has any merchant: each site answered with none"):
        make_sites({0: [], 1: []})
    with pytest.raises(DataError, match=r"no site has any merchant: site 2 failed: .*disk on fire"):
        make_sites({0: None})


def test_a_site_that_fails_is_left_out():
    assert make_sites({0: ["a"], 1: None, 2: ["c"]}).merchants == ["a", "c"]


def test_uplinks_come_back_ordered_by_merchant_whoever_hosts_them():
    replies = make_sites().train(request("d", "c", "b", "a"), Downlink(1), {})
    assert [uplink.merchant for uplink in replies.uplinks] == ["a", "b", "c", "d"]
    assert replies.refusals == ()


def test_only_the_asked_merchants_train():
    replies = make_sites().train(request("b", "d"), Downlink(1), {})
    assert [uplink.merchant for uplink in replies.uplinks] == ["b", "d"]


def test_bytes_are_those_of_a_merchants_own_records():
    long = Uplink("a", 1, soft_labels=torch.zeros(100, 4), metrics={"loss": 1.0})
    short = Uplink("b", 1, metrics={"loss": 1.0})
    down = Downlink(1, {"w": torch.zeros(50)})
    replies = make_sites({0: ["a"], 1: ["b"]}, {0: [long], 1: [short]}).train(request("a", "b"), down, {})
    sizes = [serialized_bytes(encode_uplink(uplink)) for uplink in (long, short)]
    assert replies.uplink_bytes == np.mean(sizes)
    assert sizes[0] > 100 * 4 * 4 > sizes[1]


@pytest.mark.parametrize(
    ("answers", "accepted", "reason"),
    [
        (
            {1: [Uplink("c", 1)]},
            ["a", "c", "d"],
            "a reply for merchant 'c' came from site 3, which was not asked for it",
        ),
        ({1: [Uplink("ghost", 1)]}, ["a", "c", "d"], "a reply for merchant 'ghost' came from site 3"),
        ({0: [Uplink("a", 1), Uplink("a", 2)]}, ["a", "b", "c"], "merchant a sent two uplinks in one round"),
        ({1: [Uplink("b", 3)]}, ["a", "c", "d"], "merchant b claims 3 training examples, but announced 2"),
        (
            {1: [RecordDict({"up": ConfigRecord({"merchant": "b"})})]},
            ["a", "c", "d"],
            "an uplink could not be read: KeyError",
        ),
        (
            {1: [RecordDict({"refusal": ConfigRecord({"merchant": "b", "reason": "budget spent"})})]},
            ["a", "c", "d"],
            "budget spent",
        ),
        ({1: [RecordDict({"refusal": ConfigRecord({})})]}, ["a", "c", "d"], "no reason given"),
    ],
)
def test_answers_that_cannot_be_used_are_refusals_that_say_why(answers, accepted, reason):
    replies = make_sites(answers=answers).train(request("a", "b", "c", "d"), Downlink(1), {})
    assert [uplink.merchant for uplink in replies.uplinks] == accepted
    assert [reason in refusal.reason for refusal in replies.refusals] == [True]


def test_test_counts_are_collected_and_impossible_ones_left_out(caplog):
    counts = {0: {"a": [3, 4], "d": [5, 4]}, 1: {"c": [1, 1]}, 2: None}
    found = make_sites(counts=counts).evaluate(request("a", "b", "c", "d"), {"w": torch.zeros(1)})
    assert found == {"a": (3, 4)}
    assert "merchant d: [5, 4] is not (right, all)" in caplog.text
    assert "a reply for merchant 'c' came from site 3" in caplog.text
