"""Conversion of messages to Flower records and back, and their serialized size.

Arrays are sent as npy, numbers as Flower metric and config records, without pickle. Received content is validated:
names, shapes, row numbers, finite values; and its size before it is read.
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
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.transport.arrays import layout_of, read_array
from fed_distill.transport.messages import Carrier, Downlink, Kinds, Uplink

MOST_EXAMPLES = 2**31
"""Maximum number of examples of a merchant, so that sums over merchants are exact."""
LARGEST_METRIC = 1e9
"""Maximum loss or count of a merchant, so that sums over merchants are finite."""
HEADS = ("up", "refusal")
"""Records with the merchant's name; each part of a reply has one of them."""
MOST_METRICS = 100
"""Maximum number of metrics of a merchant."""
RESERVED = ("coded", "metrics", "scalars", "shapes")
"""Records of messages beside those of payloads."""
_UP, _DOWN = "up", "down"


@dataclass(frozen=True)
class RawMessage:
    """A message with arrays that have been read, before its payloads are created.

    :param tensors: tensors by record, without its prefix, and name
    :param numbers: integers of its head, by name
    :param scalars: metrics, or numbers of the method
    """

    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, int]
    scalars: dict[str, float]

    def payloads(self, kinds: Iterable[type[Payload]]) -> tuple[Payload, ...]:
        """Return the payloads of these ``kinds``; raise ValueError for a record of none of them."""
        there = [kind for kind in kinds if kind.records[0] in self.tensors]
        odd = self.tensors.keys() - {name for kind in there for name in kind.records}
        if odd:
            raise ValueError(f"{sorted(odd)[0]!r} is not an expected record")
        return tuple(
            kind.from_records({name: self.tensors[name] for name in kind.records if name in self.tensors}, self.numbers)
            for kind in there
        )


def to_array_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Convert tensors to npy arrays by name."""
    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in tensors.items()})


def from_array_record(record: ArrayRecord, room: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """Inverse of ``to_array_record``; the tensors own their memory.

    :param room: maximum bytes of each array, by name
    :raises ValueError: an array is larger, unexpected, or has an invalid header (``arrays``); nothing is allocated
    """
    if room is not None:
        check_room(record, room)
    return {name: torch.from_numpy(read_array(array)) for name, array in record.items()}


def check_room(record: ArrayRecord, room: Mapping[str, int]) -> None:
    """Raise ValueError for an array without ``room``, or with too little."""
    for name, array in record.items():
        if name not in room:
            raise ValueError(f"{name!r} is not an expected array")
        if (size := layout_of(array).nbytes) > room[name]:
            raise ValueError(f"{name} has {size} bytes, but at most {room[name]} are allowed")


def room_for(kinds: Iterable[type[Payload]], context: Context) -> Room:
    """Return the maximum sizes of arrays in an uplink with payloads of ``kinds``."""
    return {f"{_UP}.{name}": sizes for kind in kinds for name, sizes in kind.room(context).items()}


def serialized_bytes(content: RecordDict) -> int:
    """Return the size in bytes of the records as Flower serializes them."""
    return int(recorddict_to_proto(content).ByteSize())


def to_bytes(content: RecordDict) -> bytes:
    """Serialize the records as Flower does."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def from_bytes(serialized: bytes) -> RecordDict:
    """Inverse of ``to_bytes``; raise ValueError for invalid bytes."""
    try:
        return recorddict_from_proto(SerializedRecords.FromString(serialized))
    except DecodeError as error:
        raise ValueError(str(error)) from error


def encode_downlink(down: Downlink, coded: Collection[str] = ()) -> RecordDict:
    """Return the records of a downlink, without those that are ``coded`` separately."""
    content = RecordDict({_DOWN: ConfigRecord({"round": down.round, **_numbers(down)})})
    if down.scalars:
        content[f"{_DOWN}.scalars"] = MetricRecord(dict(down.scalars))
    content.update(_arrays(down, _DOWN, coded))
    return content


def read_downlink(content: RecordDict) -> RawMessage:
    """Read a downlink; raise KeyError, TypeError or ValueError if its head or an array is invalid."""
    numbers = {name: _whole(value) for name, value in content.config_records[_DOWN].items()}
    scalars = content.metric_records.get(f"{_DOWN}.scalars", MetricRecord())
    told = {name: float(_scalar(value)) for name, value in scalars.items()}
    return RawMessage(_read_arrays(content, _DOWN), numbers, told)


def decode_downlink(content: RecordDict, kinds: Kinds) -> Downlink:
    """Inverse of ``encode_downlink``.

    :param kinds: allowed kinds of payloads
    :raises TrainingError: a part is missing, has another kind, or cannot be read
    """
    try:
        got = read_downlink(content)
        return Downlink(got.numbers["round"], got.payloads(kinds), got.scalars)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the site
        raise TrainingError(f"the downlink cannot be read: {type(error).__name__}: {error}") from error


def decode_starts(content: RecordDict) -> dict[str, Weights]:
    """Read initial weights by student name, in records ``start.NAME`` beside a downlink; raise TrainingError if they
    are invalid."""
    try:
        return {
            name.removeprefix("start."): from_array_record(record)
            for name, record in content.array_records.items()
            if name.startswith("start.")
        }
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the site
        raise TrainingError(f"the initial weights cannot be read: {type(error).__name__}: {error}") from error


def encode_uplink(up: Uplink, coded: Collection[str] = ()) -> RecordDict:
    """Return the records of one merchant's uplink, without those that are ``coded`` separately."""
    content = RecordDict({_UP: ConfigRecord({"merchant": up.merchant, "examples": up.examples, **_numbers(up)})})
    if up.metrics:
        content[f"{_UP}.metrics"] = MetricRecord(dict(up.metrics))
    content.update(_arrays(up, _UP, coded))
    return content


def read_uplink(content: RecordDict, room: Room | None = None) -> tuple[str, RawMessage]:
    """Read an uplink: its merchant and its content.

    :raises UplinkRejected: its head or an array is invalid, or exceeds ``room``
    """
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
            raise TypeError("the merchant's name is not a string")
        numbers = {name: _whole(value) for name, value in head.items()}
        told = {name: float(_scalar(value)) for name, value in metrics.items()}
        return merchant, RawMessage(_read_arrays(content, _UP), numbers, told)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
        raise UplinkRejected(f"an uplink could not be read: {type(error).__name__}: {error}") from error


def decode_uplink(content: RecordDict, kinds: Kinds, room: Room | None = None) -> Uplink:
    """Inverse of ``encode_uplink``.

    :param kinds: allowed kinds of payloads
    :raises UplinkRejected: a part is missing, has another kind, is invalid, or exceeds ``room``
    """
    merchant, got = read_uplink(content, room)
    return uplink_of(merchant, got, kinds)


def uplink_of(merchant: str, got: RawMessage, kinds: Kinds) -> Uplink:
    """Convert a received message to an uplink; raise UplinkRejected for an invalid payload, or one not in ``kinds``."""
    try:
        return Uplink(merchant, got.numbers["examples"], got.payloads(kinds), got.scalars)
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
        raise UplinkRejected(f"an uplink could not be read: {type(error).__name__}: {error}") from error


def check_uplink(up: Uplink, context: Context) -> None:
    """Raise UplinkRejected, with the merchant and the reason, unless the uplink fits the round: a plausible number of
    examples, plausible metrics, and payloads that are valid in ``context``."""
    if not 1 <= up.examples <= MOST_EXAMPLES:
        raise UplinkRejected(f"merchant {up.merchant}: {up.examples} training examples")
    _check_metrics(up.merchant, up.metrics)
    for payload in up.payloads:
        try:
            payload.validate(context)
        except ValueError as error:
            raise UplinkRejected(f"merchant {up.merchant}: {error}") from error
    released = up.get(ReleasedLabels)
    if released is not None and len(released.labels) != up.examples:  # claims limit what other merchants count for
        raise UplinkRejected(f"merchant {up.merchant}: {up.examples} examples, but {len(released.labels)} labels")


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
    """Read all arrays of a message, except separately coded ones (``{prefix}.coded``)."""
    return {
        name.removeprefix(f"{prefix}."): from_array_record(record)
        for name, record in content.array_records.items()
        if name.startswith(f"{prefix}.") and name != f"{prefix}.coded"
    }


def prefixed(content: RecordDict, prefix: str) -> dict[str, Any]:
    """Return the records with names that begin with ``prefix``, so that several fit in one message."""
    return {f"{prefix}{name}": record for name, record in content.items()}


def by_prefix(content: RecordDict) -> dict[str, RecordDict]:
    """Inverse of ``prefixed``: the records of each prefix that ends with ``/``, in their original order."""
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
        raise TypeError(f"expected an integer, not {type(value).__name__}")
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, list):
        raise TypeError("expected one number, not a list")
    return value
