"""Compression of one federation's messages: chains for updates, soft labels and the downlink, and their records.

Uplinks have updates relative to the downlink, which the server adds to its own exact weights, even if the downlink is
compressed: changes below the quantization step of the downlink accumulate over rounds. Without stages, messages are
identical to those of ``transport.records``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fed_distill.config import TransportConfig
from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights, is_finite
from fed_distill.payloads.base import Context, Room
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels, answered_of
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.registry import Registry
from fed_distill.seeds import Randomness
from fed_distill.transport import records
from fed_distill.transport.arrays import read_array
from fed_distill.transport.coding import SOFT_LABEL_STAGES, UPDATE_STAGES
from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.integers import LIMIT
from fed_distill.transport.coding.kept import Kept
from fed_distill.transport.coding.soft_labels import read_changed, read_soft_labels, write_changed, write_soft_labels
from fed_distill.transport.coding.stream import Reader, Writer
from fed_distill.transport.coding.weights import read_weights, residual_of, with_residual, write_weights
from fed_distill.transport.messages import Downlink, Kinds, Uplink
from fed_distill.transport.records import RawMessage

CODED: dict[str, Kinds] = {"weights": (StudentWeights, StudentUpdate), "soft_labels": (SoftLabels, SelectedSoftLabels)}
"""Kinds of payloads by key of ``[transport]``; subclasses included."""
Known = Callable[[str], Tensor | None]
"""Returns the server's cached soft labels of a merchant; None without any."""
_UP, _DOWN, _SHAPES = "up.coded", "down.coded", "down.shapes"
_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
_CODED_BYTES = 12
"""Maximum bytes of a number in a compressed array, with its position."""
_LARGEST = 2**40
"""Maximum size of one weight of a downlink, so that computations with its shape are exact."""


def _nothing(merchant: str) -> None:
    """Return None for every merchant."""


@dataclass(frozen=True)
class Codec:
    """Chains for each part of a message; None for a part without compression.

    error_feedback: whether merchants keep the compression error of their updates. cache: merchants send soft labels
    only for proxy examples with a probability that changed by more than this; None: all.
    """

    weights: Chain | None = None
    soft_labels: Chain | None = None
    downlink_weights: Chain | None = None
    downlink_soft_labels: Chain | None = None
    error_feedback: bool = False
    cache: float | None = None

    @classmethod
    def of(cls, config: TransportConfig) -> Self:
        """Build the codec of an experiment; raise ConfigError for an unknown stage or option."""
        labels = config.soft_labels or config.soft_label_cache is not None
        answers = config.downlink_soft_labels
        return cls(
            weights=_chain(config.weights, UPDATE_STAGES) if config.weights else None,
            soft_labels=_chain(config.soft_labels, SOFT_LABEL_STAGES) if labels else None,
            downlink_weights=_chain(config.downlink_weights, UPDATE_STAGES) if config.downlink_weights else None,
            downlink_soft_labels=_chain(answers, SOFT_LABEL_STAGES) if answers else None,
            error_feedback=bool(config.weights) and config.error_feedback,
            cache=config.soft_label_cache,
        )

    @property
    def keeps(self) -> bool:
        """Whether merchants keep state of an uplink for the next one."""
        return self.error_feedback or self.cache is not None

    def encode_downlink(self, down: Downlink, randomness: Randomness) -> RecordDict:
        """Return the records of a downlink, the same for every merchant."""
        shapes: dict[str, list[int] | list[str]] = {}
        coded: dict[str, Tensor] = {}
        if self.downlink_weights is not None and down.weights:
            weights = {name: down.weights[name].detach().cpu() for name in sorted(down.weights)}
            out = Writer()
            write_weights(out, PartialWeights(weights), weights, self.downlink_weights, randomness)
            coded["weights"] = _tensor(out.content())
            shapes |= _announcement(weights)
        labels = down.get(SoftLabels)
        if self.downlink_soft_labels is not None and labels is not None:
            coded["soft_labels"] = _tensor(write_soft_labels(labels.probabilities, self.downlink_soft_labels))
            shapes["soft_labels"] = list(labels.probabilities.shape)
        content = records.encode_downlink(down, coded)
        if coded:
            content[_SHAPES] = ConfigRecord(dict(shapes))
            content[_DOWN] = records.to_array_record(coded)
        return content

    def decode_downlink(
        self,
        content: RecordDict,
        kinds: Kinds,
        proxy_shape: tuple[int, int] | None = None,
        student: Weights | None = None,
    ) -> Downlink:
        """Inverse of ``encode_downlink``, up to compression errors.

        A few bytes can encode large tensors, so that shapes are validated before memory is allocated.

        :param kinds: allowed kinds of payloads
        :param proxy_shape: (proxy examples, classes) at this site
        :param student: weights of the request's global student, for their shapes
        :raises TrainingError: the downlink is not encoded as configured, has another kind, or cannot be read
        """
        if _DOWN not in content and self.downlink_weights is None and self.downlink_soft_labels is None:
            return records.decode_downlink(content, kinds)
        try:
            got = records.read_downlink(content)
            coded = _read_bytes(content, _DOWN) if _DOWN in content else {}
            chains = {"weights": self.downlink_weights, "soft_labels": self.downlink_soft_labels}
            if any(chains.get(part) is None for part in coded) or any(
                chain is not None and part in got.tensors for part, chain in chains.items()
            ):
                raise ValueError("its coding differs from this site's experiment: run the same experiment at both ends")
            if "weights" in coded and self.downlink_weights is not None:
                like, source = _announced(content.config_records[_SHAPES]), Reader(coded["weights"])
                if student is not None and not _alike(like, student):
                    raise ValueError("its weights do not match the student of the request")
                sent = read_weights(source, like, self.downlink_weights)
                source.finish()
                if sent.rows or sent.arrays.keys() != like.keys():
                    raise ValueError("it has only a part of the announced weights")
                got.tensors["weights"] = {name: value.to(like[name].dtype) for name, value in sent.arrays.items()}
            if "soft_labels" in coded and self.downlink_soft_labels is not None:
                source = Reader(coded["soft_labels"])
                shape = _announced_labels(content.config_records[_SHAPES])
                if proxy_shape is not None and shape != proxy_shape:
                    raise ValueError(f"its soft labels have shape {list(shape)}, not {list(proxy_shape)}")
                values = read_soft_labels(source, shape, self.downlink_soft_labels)
                got.tensors["soft_labels"] = {"soft_labels": values}
                source.finish()
            return Downlink(got.numbers["round"], got.payloads(kinds), got.scalars)
        except Exception as error:  # received bytes can raise any error, which must not stop the site
            raise TrainingError(f"the compressed downlink cannot be read: {error}") from error

    def encode_uplink(
        self, up: Uplink, base: Weights, randomness: Randomness, kept: Kept | None = None
    ) -> tuple[RecordDict, Kept]:
        """Return the records of an uplink, and the merchant's state for its next one, if this codec ``keeps`` any.

        :param base: weights of the downlink, for names, shapes and types; empty without weights
        :param kept: state of the last uplink; soft labels only if the server has them too
        :raises UplinkRejected: the uplink cannot be encoded; the message has the merchant's name
        """
        coded: dict[str, Tensor] = {}
        instead: set[str] = set()
        kept = kept or Kept()
        try:
            update = up.get(StudentUpdate)
            if self.weights is not None and update is not None:
                data, residual = self._encode_update(update, base, randomness, kept.residual)
                coded["weights"], kept = data, replace(kept, residual=residual)
                instead |= {*StudentUpdate.records}
            labels = next((one for one in up.payloads if isinstance(one, SoftLabels | SelectedSoftLabels)), None)
            if self.soft_labels is not None and labels is not None:
                whole = isinstance(labels, SoftLabels)
                data, received = self._encode_soft_labels(labels.probabilities, whole, kept.soft_labels)
                coded["soft_labels"], kept = data, replace(kept, soft_labels=received)
                instead.add("soft_labels")
        except ValueError as error:
            raise UplinkRejected(f"merchant {up.merchant}: {error}") from error
        content = records.encode_uplink(up, instead)
        if coded:
            content[_UP] = records.to_array_record(coded)
        return content, kept

    def decode_uplink(
        self,
        content: RecordDict,
        kinds: Kinds,
        base: Weights,
        proxy_shape: tuple[int, int] | None,
        known: Known = _nothing,
        room: Room | None = None,
    ) -> Uplink:
        """Inverse of ``encode_uplink``, up to compression errors. Memory is allocated for expected sizes only.

        :param kinds: allowed kinds of payloads
        :param base: the global student's weights, as in ``encode_uplink``
        :param proxy_shape: (proxy examples, classes)
        :param known: a merchant's last soft labels, for ``cache``
        :param room: maximum sizes of its arrays
        :raises UplinkRejected: the uplink is not encoded as configured, or has another kind
        """
        merchant, got = records.read_uplink(content, room)
        try:
            self._decode(merchant, got, content, base, proxy_shape, known)
        except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
            raise UplinkRejected(f"merchant {merchant}: its uplink cannot be decoded: {error}") from error
        return records.uplink_of(merchant, got, kinds)

    def room_for(self, kinds: Kinds, context: Context) -> Room:
        """Return the maximum sizes of arrays in an uplink with payloads of ``kinds``, compressed or not."""
        numbers = sum(value.numel() + (len(value) if value.dim() else 0) for value in context.weights.values())
        coded = {
            "weights": _CODED_BYTES * (numbers + len(context.weights)),
            "soft_labels": _CODED_BYTES * (context.proxy * (context.classes + 1) + 1),
        }
        return {**records.room_for(kinds, context), _UP: coded}

    def _encode_update(
        self, update: PartialWeights, base: Weights, randomness: Randomness, residual: PartialWeights
    ) -> tuple[Tensor, PartialWeights]:
        assert self.weights is not None
        if not base:
            raise ValueError("its method sends an update, but the downlink has no weights")
        if not all(map(is_finite, update.arrays.values())):
            raise ValueError("its update is not finite: train at a lower learning rate")
        if self.error_feedback:
            update = with_residual(update, residual)
        out = Writer()
        write_weights(out, update, base, self.weights, randomness)
        if not self.error_feedback:
            return _tensor(out.content()), residual
        received = read_weights(Reader(out.content()), base, self.weights)
        return _tensor(out.content()), residual_of(update, received, residual)

    def _encode_soft_labels(self, values: Tensor, whole: bool, known: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert self.soft_labels is not None
        if not bool(torch.isfinite(values).all()):
            raise ValueError("its soft labels are not finite: train at a lower learning rate")
        if self.cache is None:
            return _tensor(write_soft_labels(values, self.soft_labels)), None
        if not whole:
            raise ValueError("transport.soft_label_cache is for soft labels of the whole proxy set")
        data = write_changed(values, self.soft_labels, known, self.cache)
        proxy, classes = values.shape
        return _tensor(data), read_changed(Reader(data), (proxy, classes), self.soft_labels, known)

    def _decode(
        self,
        merchant: str,
        got: RawMessage,
        content: RecordDict,
        base: Weights,
        proxy_shape: tuple[int, int] | None,
        known: Known,
    ) -> None:
        """Add decoded tensors to the received ones, as in a message without compression."""
        coded = _read_bytes(content, _UP) if _UP in content else {}
        chains = {"weights": self.weights, "soft_labels": self.soft_labels}
        first = {"weights": StudentUpdate.records[0], "soft_labels": SoftLabels.records[0]}
        plain = [part for part, chain in chains.items() if chain is not None and first[part] in got.tensors]
        odd = [part for part in coded if chains.get(part) is None]
        if plain or odd:
            raise ValueError(f"{(plain + odd)[0]} are {'not ' if plain else ''}compressed, unlike in the experiment")
        if "weights" in coded and self.weights is not None:
            if not base:
                raise ValueError("it has an update of weights, but the downlink has no weights")
            source = Reader(coded["weights"])
            update = StudentUpdate.of(read_weights(source, base, self.weights))
            got.tensors.update({name: dict(values) for name, values in update.to_records().items()})
            source.finish()
        if "soft_labels" in coded and self.soft_labels is not None:
            source, (shape, whole) = Reader(coded["soft_labels"]), _answers(got, proxy_shape)
            if self.cache is None:
                values = read_soft_labels(source, shape, self.soft_labels)
            elif not whole:
                raise ValueError("it has soft labels of some proxy examples, but soft_label_cache requires all")
            else:
                values = read_changed(source, shape, self.soft_labels, known(merchant))
            source.finish()
            got.tensors["soft_labels"] = {"soft_labels": values}


def _chain(entries: Sequence[str | dict[str, Any]], stages: Registry) -> Chain:
    """Build a chain from stages by name, or as tables with ``stage`` and options."""
    built = []
    for entry in entries:
        options = {"stage": entry} if isinstance(entry, str) else dict(entry)
        built.append(stages.build(str(options.pop("stage")), options))
    return Chain(tuple(built))


def _answers(got: RawMessage, proxy_shape: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Return the shape of an uplink's soft labels, and whether they cover the whole proxy set."""
    if proxy_shape is None:
        raise ValueError("it has soft labels, which were not requested")
    proxy, classes = proxy_shape
    if "answered" not in got.tensors:
        return (proxy, classes), True
    answered = answered_of(got.tensors, got.numbers)
    if tuple(answered.shape) != (proxy,):
        raise ValueError(f"answered has shape {list(answered.shape)}, not {[proxy]}")
    return (int(answered.sum()), classes), False


def _announcement(weights: Weights) -> dict[str, list[int] | list[str]]:
    """Return names, types and shapes of weights, which the bytes do not contain."""
    return {
        "names": list(weights),
        "types": [str(value.dtype).removeprefix("torch.") for value in weights.values()],
        "dimensions": [value.dim() for value in weights.values()],
        "sizes": [size for value in weights.values() for size in value.shape],
    }


def _announced(record: ConfigRecord) -> dict[str, Tensor]:
    """Return weights of the shapes that a downlink announces, without allocated memory."""
    values: dict[str, Any] = dict(record)
    sizes = iter(values["sizes"])
    like = {}
    for name, kind, dimensions in zip(values["names"], values["types"], values["dimensions"], strict=True):
        shape = list(islice(sizes, dimensions))
        if len(shape) != dimensions or not all(0 <= size < LIMIT for size in shape) or math.prod(shape) > _LARGEST:
            raise ValueError(f"it announces {name} of {dimensions} dimensions: {shape}")
        if kind not in _TYPES:
            raise ValueError(f"it announces {name} of type {kind}")
        like[name] = torch.zeros((), dtype=getattr(torch, kind)).expand(shape)
    return like


def _announced_labels(record: ConfigRecord) -> tuple[int, int]:
    """Return the shape of the soft labels that a downlink announces."""
    values: dict[str, Any] = dict(record)
    proxy, classes = values["soft_labels"]
    if proxy < 0 or classes < 1:
        raise ValueError(f"it announces soft labels of shape {[proxy, classes]}")
    return proxy, classes


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def _read_bytes(content: RecordDict, name: str) -> dict[str, bytes]:
    coded = {part: read_array(array) for part, array in content.array_records[name].items()}
    for part, value in coded.items():
        if value.dtype != np.uint8 or value.ndim != 1:
            raise ValueError(f"coded {part} are {value.dtype} of shape {list(value.shape)}, not bytes")
    return {part: value.tobytes() for part, value in coded.items()}


def _alike(one: Weights, other: Weights) -> bool:
    """Whether both have the same names, shapes and types."""
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and value.dtype == other[name].dtype for name, value in one.items()
    )
