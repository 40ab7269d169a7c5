"""What one merchant costs, by student and method: the constants from which ``projection.py`` makes its tables.

Bytes are those of serialized messages, as Flower puts them on the wire. Seconds are CPU seconds, so that a busy machine
spoils little; torch must have one thread. Merchants are those of ``workload.py``.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from experiments.benchmarks.ours import Side
from experiments.benchmarks.workload import CLASSES, Cohort, Workload
from fed_distill.aggregation.running import RunningMean, mean_weights
from fed_distill.coordinator.sites import chunk_size
from fed_distill.models import predict
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.storage.merchant_store import MerchantStore
from fed_distill.transport.messages import Downlink, Uplink
from fed_distill.transport.records import check_uplink, decode_uplink, encode_downlink, encode_uplink, serialized_bytes
from fed_distill.transport.requests import TrainRequest, blueprint_of

PROXY = 2000
"""Proxy examples, as in the quickstart."""
TESTED = 16
"""Test examples of a merchant."""
METHODS = ("fedavg-kd", "fedmd")
"""One that sends weights, and one that sends soft labels and leaves a student at each merchant."""

T = TypeVar("T")


@dataclass(frozen=True)
class MethodCost:
    """downlink, uplink: bytes of a merchant and round. held: bytes of a received uplink's tensors at the server.

    merge_seconds: to decode, check and add one uplink.
    """

    downlink: int
    uplink: int
    held: int
    merge_seconds: float


@dataclass(frozen=True)
class StudentCost:
    """One student's constants.

    texts: training examples of a merchant. student_bytes: of its weights. chunk: merchants whose uplinks the server
    takes in at once. train_seconds: a merchant's local epoch. test_seconds: for ``TESTED`` examples. encoded_bytes:
    of a merchant's encoded examples, which a site keeps in memory. kept_bytes: on disk for a merchant that keeps a
    student of its own. methods: by name.
    """

    student: str
    texts: int
    student_bytes: int
    chunk: int
    train_seconds: float
    test_seconds: float
    encoded_bytes: int
    kept_bytes: int
    methods: Mapping[str, MethodCost]


@dataclass(frozen=True)
class NameCost:
    """Bytes that each further merchant adds: to a round's request, to a site's list of its merchants, and to its answer
    with the merchants' test counts. Names have 16 letters."""

    request: float
    roster: float
    counts: float


def student_cost(student: str, merchants: int, texts: int) -> StudentCost:
    """Train, send, merge, test and keep so many merchants once; seconds and bytes are means over them."""
    with tempfile.TemporaryDirectory(prefix="constants") as scratch:
        folder = Path(scratch)
        Workload(student, merchants, texts).prepare(folder / "data")
        cohort = Cohort.open(folder / "data")
        side = Side(cohort, "cpu", "cohort", False, True, "float32", None)
        weights = {name: value.clone() for name, value in side.student.state_dict().items()}
        list(side.round(1, weights, range(min(merchants, 16))))  # warms up
        train_seconds, uplinks = _timed(lambda: list(side.round(2, weights, range(merchants))))
        encoded = [shop.encoded for shop in cohort.shops]
        test_seconds, _ = _timed(lambda: [predict(side.student, _first(fields, TESTED)) for fields in encoded])
        student_bytes = sum(value.nbytes for value in weights.values())
        return StudentCost(
            student,
            texts,
            student_bytes,
            chunk_size(student_bytes),
            train_seconds / merchants,
            test_seconds / merchants,
            sum(value.nbytes for fields in encoded for value in fields.values()) // merchants,
            _kept(folder / "kept", weights),
            {
                "fedavg-kd": _weights_cost(weights, uplinks),
                "fedmd": _soft_label_cost(weights, uplinks),
            },
        )


def name_cost(merchants: int = 1000) -> NameCost:
    """From messages for one and for ``merchants`` more."""
    names = [f"merchant-{1_000_000 + number}" for number in range(merchants + 1)]
    blueprint = blueprint_of(Workload("two-tower").new_student())

    def request(chosen: Sequence[str]) -> RecordDict:
        size = len(chosen)
        asked = TrainRequest(
            "fedavg-kd", 0, tuple(chosen), ("two-tower",) * size, {"two-tower": blueprint}, (10,) * size, len(names)
        )
        return RecordDict({"request": asked.to_record()})

    def roster(chosen: Sequence[str]) -> RecordDict:
        return RecordDict({"merchants": ConfigRecord({"names": list(chosen), "examples": [500] * len(chosen)})})

    def counts(chosen: Sequence[str]) -> RecordDict:
        return RecordDict({"counts": MetricRecord({name: [90, 100] for name in chosen})})

    def each(message: Callable[[Sequence[str]], RecordDict]) -> float:
        return (serialized_bytes(message(names)) - serialized_bytes(message(names[:1]))) / merchants

    return NameCost(each(request), each(roster), each(counts))


def _weights_cost(weights: Mapping[str, Tensor], uplinks: Sequence[Uplink]) -> MethodCost:
    """Merchants get student and soft labels, and send the rows that they touched and all other weights."""
    sent = [encode_uplink(uplink) for uplink in uplinks]
    seconds, _ = _timed(lambda: mean_weights(weights, _received(sent, weights)))
    parts = [uplink.need(StudentUpdate) for uplink in uplinks]
    return MethodCost(
        _downlink_bytes(Downlink(1, (StudentWeights(weights), SoftLabels(_soft_labels())))),
        sum(map(serialized_bytes, sent)) // len(sent),
        sum(map(_held, parts)) // len(parts),
        seconds / len(sent),
    )


def _soft_label_cost(weights: Mapping[str, Tensor], uplinks: Sequence[Uplink]) -> MethodCost:
    """Merchants get and send soft labels; the first round's downlink also brings the student, which is not in here."""
    labels = _soft_labels()
    sent = [encode_uplink(Uplink(uplink.merchant, uplink.examples, (SoftLabels(labels),))) for uplink in uplinks]

    def merge() -> Tensor:
        mean = RunningMean()
        for uplink in _received(sent, weights):
            mean.add(uplink.need(SoftLabels).probabilities)
        return mean.mean()

    seconds, _ = _timed(merge)
    return MethodCost(
        _downlink_bytes(Downlink(1, (SoftLabels(labels),))),
        sum(map(serialized_bytes, sent)) // len(sent),
        labels.nbytes,
        seconds / len(sent),
    )


def _received(sent: Sequence[RecordDict], weights: Mapping[str, Tensor]) -> Iterator[Uplink]:
    for content in sent:
        uplink = decode_uplink(content, (StudentUpdate, SoftLabels))
        check_uplink(uplink, Context(weights, PROXY, len(CLASSES)))
        yield uplink


def _soft_labels() -> Tensor:
    return torch.rand(PROXY, len(CLASSES), generator=torch.Generator().manual_seed(0)).softmax(dim=-1)


def _downlink_bytes(down: Downlink) -> int:
    return serialized_bytes(encode_downlink(down))


def _held(parts: PartialWeights) -> int:
    return sum(value.nbytes for value in (*parts.arrays.values(), *parts.rows.values()))


def _kept(folder: Path, weights: Mapping[str, Tensor]) -> int:
    """Bytes on disk of one merchant's student after three rounds."""
    store = MerchantStore(folder)
    for number in (1, 2, 3):
        store.save("fedmd", 0, "merchant-1000000", number, weights)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _first(fields: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: values[:count] for name, values in fields.items()}


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, and what the work gave."""
    began = time.process_time()
    done = work()
    return time.process_time() - began, done
