"""Hundreds of requests that no honest server sends: a site refuses them by name, in bounded memory, and goes on."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_distill.errors import FedDistillError, TrainingError
from fed_distill.experiment.grid import InProcessGrid, context_of
from fed_distill.merchant.app import build_app
from fed_distill.merchant.limits import OPEN, Rules
from fed_distill.merchant.opening import open_site
from fed_distill.methods import METHODS
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Downlink
from fed_distill.transport.records import to_array_record
from fed_distill.transport.requests import ANSWER, EVALUATE, JOIN, TRAIN

EACH = 40
"""Hostile requests of each kind of ``HONEST``."""
KINDS = (TRAIN, TRAIN, TRAIN, EVALUATE, JOIN)
ODD = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.booleans(),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.text(max_size=5), max_size=3),
    st.sampled_from(
        [
            '{"kind": "two-tower", "settings": {"classes": 4, "pair": true, "rows": 1000000000, "width": 4096}}',
            '{"kind": "evil:Evil", "settings": {}}',
            "[" * 100_000,
            "\x1b[2J\x00",
            2**62,
            1e308,
            float("nan"),
        ]
    ),
)


def npy(kind, shape, payload=b""):
    """Bytes of an npy file whose header may promise anything."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + payload


ARRAYS = st.one_of(
    st.builds(
        npy,
        st.sampled_from(["<f4", "|S0", "|O", "<f8", "|V1000000", "<c16", "<i8"]),
        st.tuples(st.integers(0, 3_000_000_000)) | st.tuples(st.integers(0, 50), st.integers(0, 50)),
        st.binary(max_size=64),
    ),
    st.binary(max_size=64),
).map(lambda data: Array("float32", (1,), "numpy.ndarray", data))


def honest_array(values):
    return Array(np.asarray(values, dtype=np.float32))


@st.composite
def changes(draw):
    """What is done to an honest request: a list of (place, value) that a function of the records applies."""
    return [(draw(st.integers(0, 10**6)), draw(st.integers(0, 9)), draw(ODD), draw(ARRAYS)) for _ in range(2)]


def mutated(content, steps):
    """A copy of honest records with a value, a record or an array put in another's place, removed or added."""
    records = {}
    for name, record in content.items():
        records[name] = type(record)(dict(record))
    for place, kind, odd, array in steps:
        names = sorted(records)
        name = names[place % len(names)]
        record = records[name]
        keys = sorted(record)
        key = keys[place // 7 % len(keys)] if keys else "key"
        if kind == 0:
            del records[name]
        elif kind == 1:
            records[f"{name}.{place}"] = records.pop(name)
        elif kind == 2:
            records[name] = ConfigRecord({"key": odd})
        elif kind == 3:
            records[name] = ArrayRecord({key: array})
        elif kind == 4:
            records[name] = MetricRecord({key: place})
        elif isinstance(record, ArrayRecord):
            record[key] = array if kind < 8 else honest_array([place * 1e30])
        elif isinstance(record, ConfigRecord) and kind == 5:
            record.pop(key, None)
        elif isinstance(record, ConfigRecord):
            record[key] = odd
        if not records:
            break
    return RecordDict(records)


@dataclass
class Asked:
    """An app with one site, and an honest request to it."""

    app: object
    context: object
    content: RecordDict

    def ask(self, kind, content):
        """What the site answers: its records, or an error of its own."""
        message = Message(content, dst_node_id=2, message_type=kind)
        message.metadata.__dict__["_message_id"] = "asked"
        return self.app(message, self.context).content


PRIVATE = {"privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16}, "compare": []}
HONEST = {
    "weights and soft labels": ({}, "fedavg-kd"),
    "private": (PRIVATE, "fedavg-kd"),
    "coded": ({"transport": {"weights": ["top-k"], "downlink_weights": ["int8"]}}, "fedavg-kd"),
    "coded down": ({"transport": {"downlink_weights": ["int8"], "downlink_soft_labels": ["int8"]}}, "fedavg-kd"),
    "soft labels alone": ({}, "fedmd"),
    "own students": ({}, "fml"),
    "control variates": ({}, "scaffold"),
    "prototypes": ({}, "fedproto"),
}


@pytest.fixture(params=HONEST)
def asked(world, monkeypatch, request):
    changes, arm = HONEST[request.param]
    experiment = world.experiment.with_changes(changes)
    rules = Rules(max_model_mib=64.0, max_steps=500, scores=True)
    site = open_site(experiment, 0, 1, world.data, OPEN.model_copy(update={"rules": rules}))
    monkeypatch.setattr("fed_distill.merchant.app.site_for", lambda context, data=None: site)
    app = build_app(world.data)
    InProcessGrid(app, experiment.to_run_config())  # which gives messages of this process a run
    method = METHODS.build(experiment.arms()[arm].method, {})
    zeros = ControlVariate({name: torch.zeros_like(value) for name, value in world.start.items()})
    classes, width = len(world.data.task.classes), world.student.head[0].out_features
    prototypes = Prototypes(torch.zeros(classes, width), torch.ones(classes, dtype=torch.bool))
    sent = world.down().having(zeros, prototypes).payloads
    down = Downlink(1, tuple(payload for payload in sent if type(payload) in method.receives))
    content = Codec.of(experiment.transport_of(arm)).encode_downlink(down, ("test",))
    content["request"] = world.request(*world.names[:2], arm=arm).to_record()
    if method.keeps == "own_student":
        content["start.two-tower"] = to_array_record(world.start)
    return Asked(app, context_of(2, 1, experiment.to_run_config()), content)


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_hostile_requests_are_refused_by_name_and_the_honest_one_is_answered(asked):
    honest = asked.ask(TRAIN, asked.content)
    assert sum(name.endswith("/up") for name in honest) == 2
    most = 1.5 * peak_of(lambda: asked.ask(TRAIN, asked.content)) + 2**20  # a mebibyte for errors and their text
    told, largest = [], 0

    @settings(
        max_examples=EACH,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(KINDS), changes())
    def attack(kind, steps):
        nonlocal largest

        def ask():
            try:
                answer = asked.ask(kind, mutated(asked.content, steps))
                told.append("answered" if ANSWER in answer or kind != TRAIN else "nothing")
            except FedDistillError as error:
                assert str(error)
                told.append(type(error).__name__)

        largest = max(largest, peak_of(ask))

    attack()
    assert len(told) >= EACH and "nothing" not in told
    assert sum(one != "answered" for one in told) > EACH / 2
    assert largest <= most
    again = asked.ask(TRAIN, asked.content)
    assert again.keys() == honest.keys()


@pytest.mark.parametrize("asked", ["coded down"], indirect=True)
@pytest.mark.parametrize(
    ("key", "told"), [("sizes", "do not match the student of the request"), ("soft_labels", "soft labels have shape")]
)
def test_a_few_bytes_that_stand_for_gigabytes_are_refused_before_there_is_memory_for_them(asked, key, told):
    (name,) = (name for name, record in asked.content.config_records.items() if "soft_labels" in record)
    shapes = dict(asked.content.config_records[name])
    asked.content[name] = ConfigRecord({**shapes, key: [300_000_000, *shapes[key][1:]]})
    with pytest.raises(TrainingError, match=told):
        asked.ask(TRAIN, asked.content)
