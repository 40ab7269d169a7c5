"""A federation's round of three sites, recorded once for each kind of uplink, to be played again with another reply."""

import tracemalloc
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fed_distill.aggregation import AGGREGATORS
from fed_distill.aggregation.votes import counted_plainly
from fed_distill.config import Experiment
from fed_distill.coordinator.counts import Counts
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.data import load
from fed_distill.experiment.grid import InProcessGrid
from fed_distill.experiment.run import run_experiment
from fed_distill.merchant.app import build_app
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState
from fed_distill.payloads.base import Context
from fed_distill.reporting.callbacks import CallbackList
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import from_bytes, to_bytes
from fed_distill.transport.requests import ANSWER, TRAIN, TrainRequest

SITES, HOSTILE = 3, 2
"""Sites, and the node id of the one whose reply is changed, which has two of the five merchants."""
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
    "soft labels of experts": {"federation.method": "expert-fd", "transport.soft_labels": ["int4"]},
    "class means": {"federation.method": "fd"},
    "prototypes": {"federation.method": "fedproto"},
    "steps": {"federation.method": "scaffold", "training.merchants.optimizer": "sgd"},
    "votes": {"federation.method": "pate"},
    "randomized labels": {
        "federation.method": "lp-mst",
        "privacy.unit": "label",
        "privacy.epsilon": 1.0,
        "privacy.texts_public": True,
    },
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


class Player(InProcessGrid):
    """A grid whose nodes answer with given bytes, which it has read before: what a message takes is Flower's."""

    def __init__(self, replies: dict[tuple[int, str], bytes]) -> None:
        super().__init__(None, {}, SITES)
        self.replies = {key: from_bytes(data) for key, data in replies.items()}

    def _run_at_node(self, message):
        return Message(self.replies[message.metadata.dst_node_id, message.metadata.message_type], reply_to=message)


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
        return Context(self.down.weights or self.weights, len(data.proxy), len(data.task.classes), data.task.fields)

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

    @property
    def local_rate(self):
        return self.whole.learning_rate

    def tally(self, votes):
        return counted_plainly(votes)

    def distil(self, weights, plan, stopping=None):
        """Instead of a student what it would have learned from."""
        return {**weights, **{f"of {phase.data}": phase.references["soft_labels"] for phase in plan.phases}}

    def distil_anew(self, soft_labels, temperature=None):
        return {"labels": soft_labels}

    def distil_onwards(self, weights, soft_labels):
        return {"labels": soft_labels}

    def train_on_released(self, weights, released, passes, learning_rate_scale):
        """Instead of a student all that it would have been trained on."""
        for merchant, sent in released.items():
            assert len(sent.examples(merchant)) == len(sent.labels)
        kinds = ("labels", "outputs")
        return {name: torch.cat([getattr(sent, name).long() for sent in released.values()]) for name in kinds}

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


def record(experiment: Experiment) -> Round:
    """Run ``experiment`` and keep what went over the wire in its round."""
    recorder = Recorder(experiment)
    folder = run_experiment(experiment, recorder, CallbackList(()))
    (start,) = (folder / "checkpoint" / "seed-0").glob("server/*/final.safetensors")
    return Round(experiment, recorder, load_file(start))
