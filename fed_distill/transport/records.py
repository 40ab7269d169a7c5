"""Messages to Flower records and back, with the bytes they take on the wire.

Arrays travel as npy, numbers as Flower metric and config records: nothing is pickled. What comes from outside is
checked before it is believed: names, shapes, row numbers, finite values; and its size before it is read.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as SerializedRecords
from google.protobuf.message import DecodeError
from torch import Tensor

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context, Payload, Room
from fed_distill.transport.arrays import layout_of, read_array
from fed_distill.transport.messages import Carrier, Downlink, Kinds, Uplink

MOST_EXAMPLES = 2**31
"""Examples that a merchant may have at most: sums over merchants stay exact."""
LARGEST_METRIC = 1e9
"""A merchant's loss or count beyond this is a lie or a fault; sums over merchants stay finite."""
HEADS = ("up", "refusal")
"""Records of which each part of a reply has one, and which name its merchant."""
MOST_METRICS = 100
"""Metrics of a merchant at most."""
RESERVED = ("coded", "metrics", "scalars", "shapes")
"""Records that messages have beside those of payloads."""
_UP, _DOWN = "up", "down"


@dataclass(frozen=True)
class RawMessage:
    """A message whose arrays have been read, and whose payloads have not been made yet.

    :param tensors: by record, without its prefix, and by name in it.
    :param numbers: whole numbers of its head, by name.
    :param scalars: metrics, or a method's own numbers.
    """

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, int]
    scalars: dict[str, float]

    def payloads(self, kinds: Iterable[type[Payload]]) -> tuple[Payload, ...]:
        """The payloads of those ``kinds`` that are there. ValueError for a record that is of none of them."""
        there = [kind for kind in kinds if kind.records[0] in self.tensors]
        odd = self.tensors.keys() - {name for kind in there for name in kind.records}
        if odd:
            raise ValueError(f"{sorted(odd)[0]!r} is not among the records that belong there")
        return tuple(
            kind.from_records({name: self.tensors[name] for name in kind.records if name in self.tensors}, self.numbers)
            for kind in there
        )


def to_array_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors as npy arrays by name."""
    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in tensors.items()})


def from_array_record(record: ArrayRecord, room: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Inverse of ``to_array_record``; the tensors own their memory.

    room: bytes of each array at most, by name. ValueError, before anything is allocated, for an array that is larger or
    has no place there, and for one that is not what its header says (``arrays``).
    """
    if room is not None:
        check_room(record, room)
    return {name: torch.from_numpy(read_array(array)) for name, array in record.items()}


def check_room(record: ArrayRecord, room: Mapping[str, int]) -> None:
    """ValueError for an array for which there is no ``room``, or too little."""
    for name, array in record.items():
        if name not in room:
            raise ValueError(f"{name!r} is not among the arrays that belong there")
        if (size := layout_of(array).nbytes) > room[name]:
            raise ValueError(f"{name} has {size} bytes, and {room[name]} at most belong there")


def room_for(kinds: Iterable[type[Payload]], context: Context) -> Room:
    """How large the arrays of an uplink may be that holds payloads of ``kinds``."""
    return {f"{_UP}.{name}": sizes for kind in kinds for name, sizes in kind.room(context).items()}


def serialized_bytes(content: RecordDict) -> int:
    """Bytes of the records as Flower puts them on the wire."""
    return int(recorddict_to_proto(content).ByteSize())


def to_bytes(content: RecordDict) -> bytes:
    """The records as Flower puts them on the wire."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def from_bytes(serialized: bytes) -> RecordDict:
    """Inverse of ``to_bytes``; ValueError if these are no records."""
    try:
        return recorddict_from_proto(SerializedRecords.FromString(serialized))
    except DecodeError as error:
        raise ValueError(str(error)) from error


def encode_downlink(down: Downlink, coded: Collection[str] = ()) -> RecordDict:
    """The records of a downlink, without those that are ``coded`` in another way."""
    content = RecordDict({_DOWN: ConfigRecord({"round": down.round, **_numbers(down)})})
    if down.scalars:
        content[f"{_DOWN}.scalars"] = MetricRecord(dict(down.scalars))
    content.update(_arrays(down, _DOWN, coded))
    return content


def read_downlink(content: RecordDict) -> RawMessage:
    """What a downlink holds. KeyError, TypeError or ValueError if its head or an array cannot be read."""
    numbers = {name: _whole(value) for name, value in content.config_records[_DOWN].items()}
    scalars = content.metric_records.get(f"{_DOWN}.scalars", MetricRecord())
    told = {name: float(_scalar(value)) for name, value in scalars.items()}
    return RawMessage(_read_arrays(content, _DOWN), numbers, told)


def decode_downlink(content: RecordDict, kinds: Kinds) -> Downlink:
    """Inverse of ``encode_downlink``, of payloads of these ``kinds``; TrainingError if a part is missing, is none of
    these, or cannot be read."""
    try:
        got = read_downlink(content)
        return Downlink(got.numbers["round"], got.payloads(kinds), got.scalars)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the site
        raise TrainingError(f"a downlink cannot be read: {type(error).__name__}: {error}") from error


def decode_starts(content: RecordDict) -> dict[str, Weights]:
    """Weights that merchants begin with, by name of the student, which come beside a downlink as ``start.NAME``;
    TrainingError if some cannot be read."""
    try:
        return {
            name.removeprefix("start."): from_array_record(record)
            for name, record in content.array_records.items()
            if name.startswith("start.")
        }
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the site
        raise TrainingError(f"weights to start from cannot be read: {type(error).__name__}: {error}") from error


def encode_uplink(up: Uplink, coded: Collection[str] = ()) -> RecordDict:
    """The records of one merchant's uplink, without those that are ``coded`` in another way."""
    content = RecordDict({_UP: ConfigRecord({"merchant": up.merchant, "examples": up.examples, **_numbers(up)})})
    if up.metrics:
        content[f"{_UP}.metrics"] = MetricRecord(dict(up.metrics))
    content.update(_arrays(up, _UP, coded))
    return content


def read_uplink(content: RecordDict, room: Room | None = None) -> tuple[str, RawMessage]:
    """The merchant that an uplink says it is of, and what it holds. Raises UplinkRejected if its head or an array
    cannot be read, or if there is no ``room`` for it."""
    try:
        if room is not None:
            for name, record in content.array_records.items():
                check_room(record, room.get(name, {}))
        head = dict(content.config_records[_UP])
        metrics = content.metric_records.get(f"{_UP}.metrics", MetricRecord())
        if len(metrics) > MOST_METRICS:
            raise ValueError(f"{len(metrics)} metrics")
        merchant = head.pop("merchant")
        if not isinstance(merchant, str):
            raise TypeError("a merchant's name that is no text")
        numbers = {name: _whole(value) for name, value in head.items()}
        told = {name: float(_scalar(value)) for name, value in metrics.items()}
        return merchant, RawMessage(_read_arrays(content, _UP), numbers, told)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
        raise UplinkRejected(f"an uplink could not be read: {type(error).__name__}: {error}") from error


def decode_uplink(content: RecordDict, kinds: Kinds, room: Room | None = None) -> Uplink:
    """Inverse of ``encode_uplink``, of payloads of these ``kinds``; raises UplinkRejected if a part is missing, is none
    of these, or cannot be read, or if there is no ``room`` for it."""
    merchant, got = read_uplink(content, room)
    return uplink_of(merchant, got, kinds)


def uplink_of(merchant: str, got: RawMessage, kinds: Kinds) -> Uplink:
    """The uplink that was received; UplinkRejected if it holds another payload than of ``kinds``, or a broken one."""
    try:
        return Uplink(merchant, got.numbers["examples"], got.payloads(kinds), got.scalars)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
        raise UplinkRejected(f"an uplink could not be read: {type(error).__name__}: {error}") from error


def check_uplink(up: Uplink, context: Context) -> None:
    """Raise UplinkRejected, naming the merchant and what is wrong, unless the uplink fits this round: a plausible
    number of examples, plausible metrics, and payloads that are valid in ``context``."""
    if not 1 <= up.examples <= MOST_EXAMPLES:
        raise UplinkRejected(f"merchant {up.merchant}: {up.examples} training examples")
    _check_metrics(up.merchant, up.metrics)
    for payload in up.payloads:
        try:
            payload.validate(context)
        except ValueError as error:
            raise UplinkRejected(f"merchant {up.merchant}: {error}") from error


def _check_metrics(merchant: str, sent: Mapping[str, float]) -> None:
    for name, value in sent.items():
        if not abs(value) <= LARGEST_METRIC:
            raise UplinkRejected(f"merchant {merchant}: metric {name} is {value}")
        if name in ("test_right", "test_count") and value != int(value):
            raise UplinkRejected(f"merchant {merchant}: metric {name} is {value}, not a number of examples")
    if not 0 <= sent.get("test_right", 0.0) <= sent.get("test_count", 0.0):
        raise UplinkRejected(f"merchant {merchant}: metric test_right is not between 0 and test_count")


def _numbers(sent: Carrier) -> dict[str, int]:
    return {name: number for payload in sent.payloads for name, number in payload.numbers().items()}


def _arrays(sent: Carrier, prefix: str, coded: Collection[str]) -> dict[str, Any]:
    return {
        f"{prefix}.{name}": to_array_record(tensors)
        for payload in sent.payloads
        for name, tensors in payload.to_records().items()
        if name not in coded
    }


def _read_arrays(content: RecordDict, prefix: str) -> dict[str, dict[str, Tensor]]:
    """All arrays of a message but those that are coded in another way (``{prefix}.coded``)."""
    return {
        name.removeprefix(f"{prefix}."): from_array_record(record)
        for name, record in content.array_records.items()
        if name.startswith(f"{prefix}.") and name != f"{prefix}.coded"
    }


def prefixed(content: RecordDict, prefix: str) -> dict[str, Any]:
    """The same records under names that begin with ``prefix``, so that several fit into one message."""
    return {f"{prefix}{name}": record for name, record in content.items()}


def by_prefix(content: RecordDict) -> dict[str, RecordDict]:
    """Inverse of ``prefixed``: the records of each prefix that ends with ``/``, in the order in which they came."""
    parts: dict[str, dict[str, Any]] = {}
    for name, record in content.items():
        prefix, slash, rest = name.partition("/")
        parts.setdefault(prefix + slash, {})[rest] = record
    return {prefix: RecordDict(records) for prefix, records in parts.items()}


def by_merchant(content: RecordDict, requested: Collection[str]) -> tuple[dict[str, RecordDict], int]:
    """Group ``by_prefix`` by the merchant named in each part.

    :return: the first part of each ``requested`` merchant, and the number of other parts, which are ignored
    """
    prefixes: set[str] = set()
    merchants: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, record in content.items():
        prefix, _, rest = name.partition("/")
        prefixes.add(prefix)
        if rest in HEADS and isinstance(record, ConfigRecord) and prefix not in merchants:
            merchant = record.get("merchant")
            if isinstance(merchant, str) and merchant in requested and merchant not in parts:
                merchants[prefix], parts[merchant] = merchant, {}
    for name, record in content.items():
        prefix, _, rest = name.partition("/")
        if prefix in merchants:
            parts[merchants[prefix]][rest] = record
    return {merchant: RecordDict(records) for merchant, records in parts.items()}, len(prefixes) - len(parts)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"a value of type {type(value).__name__} where a whole number belongs")
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, list):
        raise TypeError("a list where one number belongs")
    return value
