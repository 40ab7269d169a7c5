"""Hostile and malformed replies, made by the hundred from honest ones: each is refused by name or is what an honest
merchant could have sent, the others are merged as if it were not there, and it costs no more memory than an honest one.

A federation of three sites is recorded once for each kind of uplink. Then its round is played again and again, with the
reply of one site changed.
"""

import logging
import tracemalloc
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fed_distill.aggregation import AGGREGATORS
from fed_distill.aggregation.votes import counted_plainly
from fed_distill.config import Experiment
from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.exchange import LONGEST_REASON
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.data import load
from fed_distill.experiment.grid import InProcessGrid, LocalGrid
from fed_distill.experiment.run import run_experiment
from fed_distill.merchant.app import build_app
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState
from fed_distill.payloads.base import Context
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.transport.arrays import read_array
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import check_uplink, decode_uplink, encode_uplink, from_bytes, to_bytes
from fed_distill.transport.requests import ANSWER, TRAIN, TrainRequest

SITES, HOSTILE = 3, 2
"""Sites, and the node id of the one whose reply is changed, which has two of the five merchants."""
EXAMPLES = 45
"""Replies of each kind."""
ROOM = 1.5
"""Memory that a hostile round may take at its peak, as a multiple of an honest one's."""
TINY = {
    "controls": [],
    "adaptation.enabled": False,
    "runtime.measure_speed": False,
    "federation.rounds": 1,
    "federation.method": "fedavg",
    "federation.options": {},
    "student.options.rows": 4096,
}
KINDS: dict[str, dict[str, Any]] = {
    "weights": {},
    "rows of tables": {"federation.aggregator": "fedsubavg"},
    "coded weights": {
        "federation.aggregator": "fedsubavg",
        "transport.weights": [{"stage": "top-k", "share": 0.2}, "int8"],
    },
    "coded by rank and sign": {"training.submodel": False, "transport.weights": [{"stage": "svd", "rank": 2}, "sign"]},
    "factors": {"federation.method": "fedkd", "training.submodel": False},
    "coded soft labels": {
        "federation.method": "fedmd",
        "transport.soft_labels": [{"stage": "top-k", "classes": 2}, "int4"],
    },
    "some soft labels": {"federation.method": "selective-fd", "federation.options": {"max_entropy": 0.99}},
    "class means": {"federation.method": "fd"},
    "votes": {"federation.method": "pate"},
}


class Recorder(InProcessGrid):
    """Keeps each request and its reply, by node and kind, as bytes."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(build_app(), experiment.to_run_config(), SITES)
        self.requests: dict[tuple[int, str], bytes] = {}
        self.replies: dict[tuple[int, str], bytes] = {}

    def _run_at_node(self, message):
        key = message.metadata.dst_node_id, message.metadata.message_type
        reply = super()._run_at_node(message)
        self.requests[key], self.replies[key] = to_bytes(message.content), to_bytes(reply.content)
        return reply


class Player(LocalGrid):
    """A grid whose nodes answer with given bytes, which it has read before: what a message takes is Flower's."""

    def __init__(self, replies: dict[tuple[int, str], bytes]) -> None:
        super().__init__(SITES)
        self.replies, self.queued = {key: from_bytes(data) for key, data in replies.items()}, {}

    def _queue(self, message_id, message):
        self.queued[message_id] = message

    def pull_messages(self, message_ids):
        found = [self.queued.pop(key) for key in message_ids if key in self.queued]
        return [
            Message(self.replies[one.metadata.dst_node_id, one.metadata.message_type], reply_to=one) for one in found
        ]


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return found


@dataclass
class Outcome:
    """Of one round: what was merged and refused, and what it cost. state: weights and what else is kept."""

    intake: UplinkValidator
    uplinks: dict[str, Uplink]
    state: dict[str, torch.Tensor]
    peak: int
    largest: int


@dataclass
class Round:
    """A recorded round: what was asked and answered, and the server's part in it."""

    experiment: Experiment
    recorder: Recorder
    weights: dict[str, torch.Tensor]

    @cached_property
    def codec(self):
        return Codec.of(self.experiment.transport)

    @cached_property
    def requests(self):
        asked = {node: from_bytes(data) for (node, kind), data in self.recorder.requests.items() if kind == TRAIN}
        return {node: TrainRequest.from_record(content["request"]) for node, content in sorted(asked.items())}

    @cached_property
    def method(self):
        return METHODS.build(self.experiment.federation.method, self.experiment.federation.options)

    @cached_property
    def down(self):
        return self.codec.decode_downlink(from_bytes(self.recorder.requests[HOSTILE, TRAIN]), self.method.receives)

    @property
    def reply(self) -> RecordDict:
        """The honest reply of the hostile site."""
        return from_bytes(self.recorder.replies[HOSTILE, TRAIN])

    @property
    def theirs(self) -> tuple[str, ...]:
        """The hostile site's merchants."""
        return self.requests[HOSTILE].merchants

    @cached_property
    def whole(self) -> TrainRequest:
        every = list(self.requests.values())
        several = {name: sum((getattr(one, name) for one in every), ()) for name in ("merchants", "students", "rounds")}
        return replace(every[0], **several)

    @cached_property
    def context(self):
        data = load(self.experiment.data)
        return Context(self.down.weights or self.weights, len(data.proxy), len(data.task.classes))

    @cached_property
    def labels(self):
        return torch.rand(self.context.proxy, self.context.classes, generator=torch.Generator().manual_seed(0)).softmax(
            dim=1
        )

    def state(self) -> GlobalState:
        return GlobalState(0, self.context.weights, self.labels)

    def average(self, current, up):
        config = self.experiment.federation
        return AGGREGATORS.build(config.aggregator, config.aggregator_options).average(current, up)

    def tally(self, votes):
        return counted_plainly(votes)

    def distil(self, weights, plan):
        """Instead of a student what it would have learned from."""
        return {**weights, **{f"of {phase.data}": phase.references["soft_labels"] for phase in plan.phases}}

    def distil_anew(self, soft_labels, temperature=None):
        return {"labels": soft_labels}

    def train_teacher(self, state, plan):
        return replace(state, teacher_weights={"labels": plan.phases[0].references["soft_labels"]})

    def play(self, reply: bytes) -> Outcome:
        """The server's round, with this reply of the hostile site."""
        sites = Sites(Player({**self.recorder.replies, (HOSTILE, TRAIN): reply}))
        taken = {}

        def noted(uplinks):
            for uplink in uplinks:
                taken[uplink.merchant] = uplink
                yield uplink

        tracemalloc.start()
        with Largest() as largest:
            chunks = sites.train(self.whole, self.down, {}, 16, self.codec, self.method.sends, self.context)
            intake = UplinkValidator(
                chunks, self.context, len(self.whole.merchants), 1, 0.0, 1000.0, counts=Counts(0.6, 20.0)
            )
            merged = self.method.merge(self.state(), noted(intake), self)
            intake.finish()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        kept = {**merged.weights, **merged.kept, **({} if merged.consensus is None else {"c": merged.consensus})}
        return Outcome(intake, taken, kept, peak, largest.bytes)

    @cached_property
    def honest(self) -> Outcome:
        self.play(to_bytes(self.reply))  # what is imported and kept for later is nobody's
        return self.play(to_bytes(self.reply))

    @cached_property
    def without(self) -> Outcome:
        """The round in which the hostile site's merchants are refused."""
        reply = {"0/refusal": ConfigRecord({"merchant": self.theirs[0], "reason": "ill"}), ANSWER: self.reply[ANSWER]}
        return self.play(to_bytes(RecordDict(reply)))


@pytest.fixture(scope="module")
def recorded(tiny_experiment, tmp_path_factory):
    """A function: the recorded round of a kind."""
    found: dict[str, Round] = {}

    def of(kind):
        if kind not in found:
            experiment = tiny_experiment(tmp_path_factory.mktemp("recorded"), {**TINY, **KINDS[kind]})
            recorder = Recorder(experiment)
            folder = run_experiment(experiment, recorder, CallbackList(()))
            (start,) = (folder / "checkpoint" / "seed-0").glob("server/*/final.safetensors")
            found[kind] = Round(experiment, recorder, load_file(start))
        return found[kind]

    return of


INTEGERS = st.sampled_from([0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**31 + 1, 2**62, -(2**62)]) | st.integers(
    -(2**63), 2**63 - 1
)
FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e30, 3e38]) | st.floats()
TEXTS = (
    st.sampled_from(["", "nobody", "\x1b[2J\x1b[31m", "\u202egnol", "=1+1", "<script>", "../../x", "x" * 5000, "a\nb"])
    | st.text(max_size=20)
)  # fmt: skip
VALUES = (
    INTEGERS | FLOATS | TEXTS | st.booleans() | st.binary(max_size=9)
    | st.lists(INTEGERS, max_size=3) | st.lists(FLOATS, max_size=3) | st.lists(TEXTS, max_size=2)
)  # fmt: skip
NUMBERS = INTEGERS | FLOATS | st.lists(INTEGERS, max_size=3) | st.lists(FLOATS, max_size=3)
NUMPY = ["<f4", "<f8", "<f2", "<i4", "<i8", "|u1", "|b1", ">f4", "<c8", "|O", "<U9", "<M8[s]", "<f16", "|V8"]
DESCRIPTIONS = st.sampled_from(["[('a', '<f4')]", "('<f4', (2,))", "4", "None", *map(repr, NUMPY)])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 4096, 10**6, 2**31, 2**62, 2**64, -1]), max_size=4) | st.just(
    [1] * 40
)
MAGIC = b"\x93NUMPY\x01\x00"


@st.composite
def headers(draw):
    """Bytes that begin like an npy file, one thing of which is another: its form, type, order, shape, or its payload.

    Types without any size may promise ever so many values, of which no byte follows.
    """
    odd = draw(st.sampled_from(["nothing", "nothing", "form", "type", "order", "shape", "payload", "length"]))
    shape = tuple(draw(SHAPES)) if odd == "shape" else (3,)
    kind = draw(DESCRIPTIONS) if odd == "type" else "'<f4'"
    if odd == "nothing":
        kind, shape = draw(st.sampled_from(["'|S0'", "'<U0'", "'|V0'"])), (draw(st.sampled_from([10**6, 3 * 10**7])),)
    order = draw(st.sampled_from(["True", "0", "None"])) if odd == "order" else "False"
    header = f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    size = draw(st.sampled_from([0, 9, 65535])) if odd == "length" else len(header)
    magic = (
        draw(st.sampled_from([b"\x93NUMPY\x02\x00", b"\x93NUMPY\x09\x00", b"PK\x03\x04\x00\x00", b""]))
        if odd == "form"
        else MAGIC
    )
    payload = draw(st.binary(max_size=64)) if odd == "payload" else b"" if odd == "nothing" else bytes(12)
    return magic + size.to_bytes(4 if magic[6:7] == b"\x02" else 2, "little") + header + payload


@st.composite
def arrays(draw, before: Array):
    """Another array in the place of an honest one."""
    how = draw(
        st.sampled_from(["value", "flip", "header", "large", "type", "shape", "cut", "more", "scale", "order", "kind"])
    )
    try:
        values = read_array(before)
    except ValueError:  # it has been changed before, and who looks into it may be hurt
        return before
    if how == "header":
        return Array("float32", (1,), "numpy.ndarray", draw(headers()))
    if how == "large":
        return Array(np.zeros((8, *values.shape) if values.size > 9999 else (10**5, *values.shape[1:]), values.dtype))
    if how == "shape":
        return Array(np.zeros(draw(st.lists(st.integers(0, 9), max_size=3)), values.dtype))
    if how == "type":
        kinds = [np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_]
        return Array(values.astype(draw(st.sampled_from(kinds))))
    if how == "kind":
        return Array(before.dtype, before.shape, draw(st.sampled_from(["pickle", "", "torch"])), before.data)
    if how == "order":
        return Array(np.asfortranarray(values[::-1]))
    if how in ("value", "scale"):
        changed = np.array(values)
        with np.errstate(all="ignore"):
            if how == "scale":
                changed = (changed.astype(float) * draw(st.sampled_from([-1, 0, 2, 1000, 10**6]))).astype(values.dtype)
            elif changed.size:
                number = draw(FLOATS if values.dtype.kind == "f" else INTEGERS)
                changed.reshape(-1)[draw(st.integers(0, changed.size - 1))] = np.array(number).astype(values.dtype)
        return Array(changed)
    data = before.data
    if how == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    if how == "more":
        data += draw(st.binary(min_size=1, max_size=64))
    if how == "flip":
        flipped = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            flipped[draw(st.integers(100, len(data) - 1))] ^= draw(st.integers(1, 255))
        data = bytes(flipped)
    return Array(before.dtype, before.shape, before.stype, data)


def change_array(draw, content):
    """One array of the reply is another, is missing, is there under another name, or is one more."""
    record = content[draw(st.sampled_from([name for name, one in content.items() if isinstance(one, ArrayRecord)]))]
    if not record:
        return
    name = draw(st.sampled_from(list(record)))
    how = draw(st.sampled_from(["other"] * 6 + ["gone", "renamed", "more"]))
    array = record[name]
    if how in ("gone", "renamed"):
        del record[name]
    if how in ("renamed", "more"):
        record[draw(TEXTS)] = array
    if how == "other":
        record[name] = draw(arrays(array))


def change_head(draw, content):
    """What a part says of itself is something else."""
    record = content[draw(st.sampled_from([name for name in content if name.endswith("/up")]))]
    key = draw(st.sampled_from(["merchant", "examples", "proxy", "x"]))
    if draw(st.booleans()) and key in record:
        del record[key]
    else:
        record[key] = draw(VALUES | st.sampled_from(others(content)))


def others(content):
    """Merchants that are there or might be."""
    return [record["merchant"] for name, record in content.items() if name.endswith("/up")] + [
        "merchant-1",
        "merchant-7",
    ]


def change_metrics(draw, content):
    """Measurements that nobody can have made."""
    prefix = draw(st.sampled_from(["0/", "1/"]))
    names = st.sampled_from(["loss", "test_right", "test_count"]) | TEXTS
    content[f"{prefix}up.metrics"] = MetricRecord(draw(st.dictionaries(names, NUMBERS, max_size=4)))
    if draw(st.booleans()):
        content[f"{prefix}up.metrics"] = MetricRecord(
            {f"m{number}": 0.0 for number in range(draw(st.integers(90, 110)))}
        )


def change_records(draw, content):
    """A record is missing, under another name, twice, of another kind, or of another part."""
    name = draw(st.sampled_from(list(content)))
    record = content[name]
    how = draw(st.sampled_from(["gone", "renamed", "twice", "kind", "swapped", "several"]))
    prefixes = st.sampled_from(
        ["", "/", "0", "9/", "0/0/", "0//", "0/0/0/0/0/", "x" * 1000 + "/", "refusal/", "\u202e/"]
    )
    if how in ("gone", "renamed"):
        del content[name]
    if how in ("renamed", "twice"):
        content[draw(prefixes) + name.rpartition("/")[2]] = record
    if how == "kind":
        content[name] = draw(st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord({"merchant": "merchant-1"})]))
    if how == "swapped":
        other = draw(st.sampled_from(list(content)))
        content[name], content[other] = content[other], record
    if how == "several":  # a whole part once more
        part = draw(st.sampled_from(["0/", "1/"]))
        again = draw(prefixes)
        for one in [one for one in content if one.startswith(part)]:
            content[again + one.removeprefix(part)] = content[one]


def add_refusal(draw, content):
    """A refusal beside an uplink, or for somebody else."""
    record = {
        "merchant": draw(st.sampled_from(others(content)) | VALUES),
        "reason": draw(VALUES),
        "cause": draw(VALUES),
    }
    content[draw(st.sampled_from(["0/refusal", "5/refusal", "refusal"]))] = ConfigRecord(record)


def add_part(draw, content):
    """A part of an uplink that its method does not send."""
    name = draw(
        st.sampled_from(
            [
                "up.control_variate",
                "up.votes",
                "up.answered",
                "up.soft_labels",
                "up.class_means",
            ]
        )
    )
    name = draw(
        st.sampled_from([name, "up.coded", "up.update.weights", "up.update.thin", "up.rows", "up.counts", "up.odd"])
    )
    keys = st.sampled_from(
        ["soft_labels", "votes", "bits", "probabilities", "present", "weights", "bag.table", "head.0.bias"]
    )
    sizes = st.lists(st.sampled_from([0, 1, 2, 3, 8, 40]), max_size=3)
    values = draw(st.dictionaries(keys, sizes.map(lambda shape: Array(np.ones(shape, np.float32))), max_size=3))
    content[f"{draw(st.sampled_from(['0/', '1/']))}{name}"] = ArrayRecord(values)


def change_answer(draw, content):
    """It does not say that it answers this very request."""
    content.pop(ANSWER, None)
    if draw(st.booleans()):
        content[ANSWER] = ConfigRecord({"to": draw(VALUES)})


CHANGES = [change_array] * 6 + [change_head, change_metrics, change_records, add_refusal, add_part, change_answer]


@st.composite
def hostile(draw, content: RecordDict):
    """An honest reply after one to three changes, as bytes."""
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        heads = [record for name, record in content.items() if name.endswith("/up")]
        if len(heads) == 2 and all(isinstance(one, ConfigRecord) and "merchant" in one for one in heads):
            change(draw, content)
    return to_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_hostile_is_refused_by_name_and_the_others_are_merged(recorded, kind, caplog):
    caplog.set_level(logging.CRITICAL)
    caplog.set_level(logging.CRITICAL, "flwr")
    played = recorded(kind)
    honest, without = played.honest, played.without
    assert set(honest.intake.merchants) == set(played.whole.merchants)
    assert set(without.intake.merchants) == set(played.whole.merchants) - set(played.theirs)

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        outcome = played.play(data.draw(hostile(played.reply)))
        check_round(played, outcome)

    check()


def check_round(played: Round, outcome: Outcome) -> None:
    intake, theirs = outcome.intake, set(played.theirs)
    merged, named = set(intake.merchants), [refusal.merchant for refusal in intake.refusals]
    assert merged >= set(played.whole.merchants) - theirs
    assert set(named) <= theirs | {""}
    assert len(set(named)) == len(named)  # each once, and the site for all that it was not asked for
    told = [refusal.reason for refusal in intake.refusals if not refusal.merchant]
    assert all(reason.startswith(f"site {HOSTILE} ") for reason in told)
    assert merged.isdisjoint(named)
    assert theirs <= merged | set(named) or any("its reply is to" in reason for reason in told)
    for refusal in intake.refusals:
        assert refusal.reason.isprintable()
        assert refusal.merchant in refusal.reason
        assert len(refusal.reason) <= LONGEST_REASON
    if not merged & theirs:
        assert outcome.state.keys() == played.without.state.keys()
        assert all(torch.equal(value, played.without.state[name]) for name, value in outcome.state.items())
    for merchant in merged & theirs:
        check_could_be_honest(played, outcome.uplinks[merchant])
    assert all(bool(torch.isfinite(value.double()).all()) for value in outcome.state.values())
    assert outcome.peak <= ROOM * played.honest.peak
    assert outcome.largest <= ROOM * played.honest.largest


def check_could_be_honest(played: Round, uplink: Uplink) -> None:
    """It fits the round, has the payloads that all have, and is the same when it is sent again."""
    check_uplink(uplink, played.context)
    assert uplink.kinds == played.honest.uplinks[uplink.merchant].kinds
    assert 1 <= uplink.examples <= played.honest.uplinks[uplink.merchant].examples
    again = decode_uplink(from_bytes(to_bytes(encode_uplink(uplink))), played.method.sends)
    assert again.kinds == uplink.kinds
    assert again.examples == uplink.examples
