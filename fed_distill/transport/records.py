"""Typed messages to Flower records and back, with the bytes they take on the wire.

Arrays travel as npy, numbers as Flower metric and config records: nothing is pickled. What comes from outside is
checked before it is believed: names, shapes, row numbers, finite values; and its size before it is read.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as SerializedRecords
from google.protobuf.message import DecodeError
from torch import Tensor

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.transport.arrays import layout_of, read_array
from fed_distill.transport.low_rank import most_rank, multiplied_out
from fed_distill.transport.messages import ClassMeans, Downlink, LowRankUpdate, Uplink

MOST_EXAMPLES = 2**31
"""Examples that a merchant may have at most: sums over merchants stay exact."""
LARGEST_METRIC = 1e9
"""A merchant's loss or count beyond this is a lie or a fault; sums over merchants stay finite."""
HEADS = ("up", "refusal")
"""Records of which each part of a reply has one, and which name its merchant."""
MOST_METRICS = 100
"""Metrics of a merchant at most."""
Room = Mapping[str, Mapping[str, int]]
"""By record and array how many bytes an uplink's arrays may have at most; an array that is not in it has no place."""
_CODED_BYTES = 12
"""Bytes of a number in a coded array at most, its place included."""
_VOTES = (torch.int8, torch.int16, torch.int32, torch.int64)
"""How class indices travel, in the first of these that holds them."""


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


def room_for(weights: Weights, proxy_shape: tuple[int, int] | None) -> Room:
    """How large an uplink's arrays may be, coded or not, in a federation with such ``weights`` of its global student,
    and (proxy examples, classes) where merchants are asked about any."""
    whole = {name: value.nbytes for name, value in weights.items()}
    rows = {name: 4 * len(value) for name, value in weights.items() if value.dim()}
    factors = {name: 4 * value.numel() for name, value in weights.items() if value.dim() == 2}
    room = {f"{prefix}.weights": whole for prefix in ("up", "up.update")} | {"up.control_variate": whole}
    room |= {f"{prefix}.{part}": rows for prefix in ("up", "up.update") for part in ("rows", "counts")}
    room |= {f"up.update.{part}": factors for part in ("thin", "wide")}
    numbers = sum(value.numel() + (len(value) if value.dim() else 0) for value in weights.values())
    coded = {"weights": _CODED_BYTES * (numbers + len(weights))}
    if proxy_shape is not None:
        proxy, classes = proxy_shape
        room |= {
            "up.soft_labels": {"soft_labels": 8 * proxy * classes},
            "up.votes": {"votes": 8 * proxy},
            "up.answered": {"bits": (proxy + 7) // 8},
            "up.class_means": {"probabilities": 8 * classes * classes, "present": classes},
        }
        coded["soft_labels"] = _CODED_BYTES * (proxy * classes + proxy + 1)
    return {**room, "up.coded": coded}


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


def encode_downlink(down: Downlink) -> RecordDict:
    """The records of a downlink."""
    content = RecordDict({"down": ConfigRecord({"round": down.round})})
    if down.scalars:
        content["down.scalars"] = MetricRecord(dict(down.scalars))
    if down.weights is not None:
        content["down.weights"] = to_array_record(down.weights)
    if down.soft_labels is not None:
        content["down.soft_labels"] = to_array_record({"soft_labels": down.soft_labels})
    if down.class_means is not None:
        content["down.class_means"] = to_array_record(vars(down.class_means))
    if down.control_variate is not None:
        content["down.control_variate"] = to_array_record(down.control_variate)
    return content


def decode_downlink(content: RecordDict) -> Downlink:
    """Inverse of ``encode_downlink``; TrainingError if a part is missing or cannot be read."""
    arrays, scalars = content.array_records, content.metric_records.get("down.scalars", MetricRecord())
    try:
        return Downlink(
            round=_whole(content.config_records["down"]["round"]),
            weights=_tensors(arrays, "down.weights"),
            soft_labels=from_array_record(arrays["down.soft_labels"])["soft_labels"]
            if "down.soft_labels" in arrays
            else None,
            scalars={name: float(_scalar(value)) for name, value in scalars.items()},
            class_means=_class_means(arrays, "down.class_means"),
            control_variate=_tensors(arrays, "down.control_variate"),
        )
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


def encode_uplink(up: Uplink) -> RecordDict:
    """The records of one merchant's uplink."""
    head = ConfigRecord({"merchant": up.merchant, "examples": up.examples})
    content = RecordDict({"up": head})
    if up.metrics:
        content["up.metrics"] = MetricRecord(dict(up.metrics))
    if up.weights is not None:
        content.update(_partial_records("up", up.weights))
    if up.soft_labels is not None:
        content["up.soft_labels"] = to_array_record({"soft_labels": up.soft_labels})
    if up.votes is not None:
        content["up.votes"] = to_array_record({"votes": _narrowed(up.votes)})
    if up.answered is not None:
        content["up.answered"] = to_array_record({"bits": _packed(up.answered)})
        head["proxy"] = len(up.answered)
    if up.class_means is not None:
        content["up.class_means"] = to_array_record(vars(up.class_means))
    if up.control_variate is not None:
        content["up.control_variate"] = to_array_record(up.control_variate)
    if up.low_rank_update is not None:
        content.update(_partial_records("up.update", up.low_rank_update.plain))
        content["up.update.thin"] = to_array_record(up.low_rank_update.thin)
        content["up.update.wide"] = to_array_record(up.low_rank_update.wide)
    return content


def decode_uplink(content: RecordDict, room: Room | None = None) -> Uplink:
    """Inverse of ``encode_uplink``; raises UplinkRejected if a part is missing or cannot be read, or if there is no
    ``room`` for it."""
    try:
        arrays = content.array_records
        if room is not None:
            for name, record in arrays.items():
                check_room(record, room.get(name, {}))
        head = content.config_records["up"]
        metrics = content.metric_records.get("up.metrics", MetricRecord())
        if len(metrics) > MOST_METRICS:
            raise ValueError(f"{len(metrics)} metrics")
        merchant = head["merchant"]
        if not isinstance(merchant, str):
            raise TypeError("a merchant's name that is no text")
        answered = None
        if "up.answered" in arrays:
            answered = _unpacked(from_array_record(arrays["up.answered"])["bits"], _whole(head["proxy"]))
        return Uplink(
            merchant=merchant,
            examples=_whole(head["examples"]),
            weights=_partial(arrays, "up"),
            soft_labels=from_array_record(arrays["up.soft_labels"])["soft_labels"]
            if "up.soft_labels" in arrays
            else None,
            metrics={name: float(_scalar(value)) for name, value in metrics.items()},
            votes=_widened(from_array_record(arrays["up.votes"])["votes"]) if "up.votes" in arrays else None,
            answered=answered,
            class_means=_class_means(arrays, "up.class_means"),
            control_variate=_tensors(arrays, "up.control_variate"),
            low_rank_update=_low_rank_update(arrays),
        )
    except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
        raise UplinkRejected(f"an uplink could not be read: {type(error).__name__}: {error}") from error


def check_uplink(up: Uplink, current: Weights, proxy_shape: tuple[int, int]) -> None:
    """Raise UplinkRejected, naming the merchant and what is wrong, unless the uplink fits this round.

    Weights must be of ``current`` (those that students freeze are not sent) and have the shapes there, rows sorted,
    distinct and in range where a table is sent in part; soft labels the shape ``proxy_shape``, or a row for each
    answered proxy example, with rows that are probabilities; votes one class for each proxy example; class means a row
    of probabilities for each class that is present, and zeros for the others; a control variate the names and shapes of
    weights; a low-rank update those of weights when it is multiplied out; all must be finite.
    """
    if not 1 <= up.examples <= MOST_EXAMPLES:
        raise UplinkRejected(f"merchant {up.merchant}: {up.examples} training examples")
    _check_metrics(up.merchant, up.metrics)
    if up.weights is not None:
        _check_weights(up.merchant, up.weights, current)
    if up.answered is not None:
        _check_answered(up, proxy_shape[0])
    if up.soft_labels is not None:
        rows = proxy_shape[0] if up.answered is None else int(up.answered.sum())
        _check_soft_labels(up.merchant, up.soft_labels, (rows, proxy_shape[1]))
    if up.votes is not None:
        _check_votes(up.merchant, up.votes, proxy_shape)
    if up.class_means is not None:
        _check_class_means(up.merchant, up.class_means, proxy_shape[1])
    if up.control_variate is not None:
        _check_weights(up.merchant, PartialWeights(up.control_variate), current)
    if up.low_rank_update is not None:
        _check_low_rank(up.merchant, up.low_rank_update, current)


def _check_metrics(merchant: str, sent: Mapping[str, float]) -> None:
    for name, value in sent.items():
        if not abs(value) <= LARGEST_METRIC:
            raise UplinkRejected(f"merchant {merchant}: metric {name} is {value}")
        if name in ("test_right", "test_count") and value != int(value):
            raise UplinkRejected(f"merchant {merchant}: metric {name} is {value}, not a number of examples")
    if not 0 <= sent.get("test_right", 0.0) <= sent.get("test_count", 0.0):
        raise UplinkRejected(f"merchant {merchant}: metric test_right is not between 0 and test_count")


def _check_weights(merchant: str, sent: PartialWeights, current: Weights) -> None:
    unknown = set(sent.arrays) - set(current)
    if unknown or not sent.arrays:
        odd = f"weight {sorted(unknown)[0]!r} is unknown" if unknown else "it sent no weight"
        raise UplinkRejected(f"merchant {merchant}: {odd}")
    for name, value in sent.arrays.items():
        expected = list(current[name].shape)
        rows = sent.rows.get(name)
        if rows is not None:
            if rows.dim() != 1 or not expected or len(rows) > expected[0]:
                raise UplinkRejected(f"merchant {merchant}: {name} has rows of the wrong shape {list(rows.shape)}")
            if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= expected[0] or bool((rows.diff() <= 0).any())):
                raise UplinkRejected(f"merchant {merchant}: row numbers of {name} are out of range or not sorted")
            counts = sent.counts.get(name)
            if counts is None or counts.shape != rows.shape or bool((counts < 0).any()):
                raise UplinkRejected(f"merchant {merchant}: counts of {name} are missing, negative or of another shape")
            expected = [len(rows), *expected[1:]]
        if list(value.shape) != expected:
            raise UplinkRejected(f"merchant {merchant}: {name} has shape {list(value.shape)}, not {expected}")
        if value.dtype != current[name].dtype:
            raise UplinkRejected(f"merchant {merchant}: {name} is {value.dtype}, not {current[name].dtype}")
        if not _finite(value):
            raise UplinkRejected(f"merchant {merchant}: {name} has values that are not finite")
    unknown = (set(sent.rows) | set(sent.counts)) - set(sent.arrays)
    if unknown:
        raise UplinkRejected(f"merchant {merchant}: rows of {sorted(unknown)[0]!r} without its values")


def _check_low_rank(merchant: str, sent: LowRankUpdate, current: Weights) -> None:
    """The factors' shapes first: their product must not be larger than what it is added to."""
    like = {name: value.float() if value.is_floating_point() else value for name, value in current.items()}
    if sent.thin.keys() != sent.wide.keys() or sent.thin.keys() & sent.plain.arrays.keys():
        raise UplinkRejected(f"merchant {merchant}: a low-rank update of which factors are missing, or sent twice")
    for name, thin in sent.thin.items():
        wide, expected = sent.wide[name], list(like[name].shape) if name in like else []
        if expected and name in sent.plain.rows:
            expected[0] = min(sent.plain.rows[name].numel(), expected[0])
        if thin.dim() != 2 or wide.dim() != 2 or len(thin) != len(wide) or [thin.shape[1], wide.shape[1]] != expected:
            shapes = f"{list(thin.shape)} and {list(wide.shape)}"
            raise UplinkRejected(f"merchant {merchant}: factors of {name} have shapes {shapes}, for {expected}")
        if thin.dtype != torch.float32 or wide.dtype != torch.float32:
            raise UplinkRejected(f"merchant {merchant}: factors of {name} are {thin.dtype} and {wide.dtype}")
        if len(thin) > most_rank(thin.shape[1], wide.shape[1]):
            raise UplinkRejected(f"merchant {merchant}: factors of {name} have rank {len(thin)}, more than it can")
    _check_weights(merchant, multiplied_out(sent), like)


def _check_soft_labels(merchant: str, sent: Tensor, shape: tuple[int, int]) -> None:
    if tuple(sent.shape) != shape:
        raise UplinkRejected(f"merchant {merchant}: soft labels have shape {list(sent.shape)}, not {list(shape)}")
    if not sent.is_floating_point() or not _finite(sent) or bool((sent < 0.0).any()):
        raise UplinkRejected(
            f"merchant {merchant}: soft labels are not finite, or negative, or no floating-point numbers"
        )
    if not torch.allclose(sent.sum(dim=-1), torch.ones(shape[0], dtype=sent.dtype), atol=1e-3):
        raise UplinkRejected(f"merchant {merchant}: soft labels do not sum to 1")


def _check_votes(merchant: str, sent: Tensor, shape: tuple[int, int]) -> None:
    proxy, classes = shape
    if tuple(sent.shape) != (proxy,):
        raise UplinkRejected(f"merchant {merchant}: votes have shape {list(sent.shape)}, not {[proxy]}")
    if sent.dtype != torch.int64:
        raise UplinkRejected(f"merchant {merchant}: votes are {sent.dtype}, not {torch.int64}")
    if bool(((sent < 0) | (sent >= classes)).any()):
        raise UplinkRejected(f"merchant {merchant}: votes name classes outside 0 to {classes - 1}")


def _check_answered(up: Uplink, proxy: int) -> None:
    assert up.answered is not None
    if tuple(up.answered.shape) != (proxy,):
        raise UplinkRejected(f"merchant {up.merchant}: answered has shape {list(up.answered.shape)}, not {[proxy]}")
    if up.soft_labels is None:
        raise UplinkRejected(f"merchant {up.merchant}: it says which proxy examples it answers, without its answers")


def _check_class_means(merchant: str, sent: ClassMeans, classes: int) -> None:
    means, present = sent.probabilities, sent.present
    if tuple(means.shape) != (classes, classes) or tuple(present.shape) != (classes,):
        raise UplinkRejected(
            f"merchant {merchant}: class means have shapes {list(means.shape)} and {list(present.shape)}, not "
            f"{[classes, classes]} and {[classes]}"
        )
    if not means.is_floating_point() or present.dtype != torch.bool:
        raise UplinkRejected(f"merchant {merchant}: class means are of types {means.dtype} and {present.dtype}")
    if not _finite(means) or bool((means < 0.0).any()):
        raise UplinkRejected(f"merchant {merchant}: class means are not finite, or negative")
    if not torch.allclose(means.sum(dim=-1), present.to(means.dtype), atol=1e-3):
        raise UplinkRejected(f"merchant {merchant}: class means do not sum to 1, or to 0 where it has no examples")


def _partial_records(prefix: str, sent: PartialWeights) -> dict[str, ArrayRecord]:
    records = {f"{prefix}.weights": to_array_record(sent.arrays)}
    if sent.rows:
        for part in ("rows", "counts"):
            narrow = {name: value.to(torch.int32) for name, value in getattr(sent, part).items()}
            records[f"{prefix}.{part}"] = to_array_record(narrow)
    return records


def _partial(arrays: Mapping[str, ArrayRecord], prefix: str) -> PartialWeights | None:
    values = _tensors(arrays, f"{prefix}.weights")
    if values is None:
        return None
    rows, counts = (
        {name: _rows(value) for name, value in (_tensors(arrays, f"{prefix}.{part}") or {}).items()}
        for part in ("rows", "counts")
    )
    return PartialWeights(values, rows, counts)


def _low_rank_update(arrays: Mapping[str, ArrayRecord]) -> LowRankUpdate | None:
    plain = _partial(arrays, "up.update")
    if plain is None:
        return None
    return LowRankUpdate(
        plain, from_array_record(arrays["up.update.thin"]), from_array_record(arrays["up.update.wide"])
    )


def _class_means(arrays: Mapping[str, ArrayRecord], name: str) -> ClassMeans | None:
    return ClassMeans(**from_array_record(arrays[name])) if name in arrays else None


def _tensors(arrays: Mapping[str, ArrayRecord], name: str) -> dict[str, Tensor] | None:
    return from_array_record(arrays[name]) if name in arrays else None


def _packed(mask: Tensor) -> Tensor:
    """Eight to a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def _unpacked(bits: Tensor, size: int) -> Tensor:
    """Inverse of ``_packed`` for a mask of ``size``; a ValueError where as many bytes hold no mask of that size."""
    if bits.dtype != torch.uint8 or bits.dim() != 1 or size < 0 or not 0 <= 8 * len(bits) - size < 8:
        raise ValueError(f"{list(bits.shape)} bytes of {bits.dtype} are no mask of {size}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool))


def _narrowed(votes: Tensor) -> Tensor:
    """Class indices in the least integers that hold them all."""
    least, largest = (int(value) for value in votes.aminmax()) if votes.numel() else (0, 0)
    fitting = (dtype for dtype in _VOTES if torch.iinfo(dtype).min <= least and largest <= torch.iinfo(dtype).max)
    return votes.to(next(fitting))


def _rows(numbers: Tensor) -> Tensor:
    if numbers.dtype != torch.int32:
        raise TypeError(f"row numbers or their counts are {numbers.dtype}")
    return numbers.long()


def _widened(votes: Tensor) -> Tensor:
    if votes.dtype not in _VOTES:
        raise TypeError(f"votes are {votes.dtype}, not class indices")
    return votes.long()


def _finite(value: Tensor) -> bool:
    """Whether all values are finite: the extremes are NaN if any value is, at a tenth of the time of ``isfinite``."""
    if not value.numel() or not value.is_floating_point():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())


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


def by_merchant(content: RecordDict, asked: Collection[str]) -> tuple[dict[str, RecordDict], int]:
    """What ``by_prefix`` finds, by the merchant that each part says that it is of: of each of ``asked`` the first part
    that is there, and how many other parts there are, into which nobody looks."""
    prefixes: set[str] = set()
    merchants: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, record in content.items():
        prefix, _, rest = name.partition("/")
        prefixes.add(prefix)
        if rest in HEADS and isinstance(record, ConfigRecord) and prefix not in merchants:
            merchant = record.get("merchant")
            if isinstance(merchant, str) and merchant in asked and merchant not in parts:
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
