"""How the messages of one federation are coded: chains for updates, soft labels and the downlink, and their records.

What goes up are updates of the downlink, which the server adds to its own weights: these are exact even where the
downlink is coded, so that what is too small for the downlink's steps still adds up over the rounds. Without any stage,
messages are those of ``transport.records``, byte for byte.
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

CODED = {"weights": (StudentWeights, StudentUpdate), "soft_labels": (SoftLabels, SelectedSoftLabels)}
"""The kinds of payloads that a chain of ``[transport]`` codes, by its key there."""
Known = Callable[[str], Tensor | None]
"""The soft labels that the server has of a merchant; None for none."""
_UP, _DOWN, _SHAPES = "up.coded", "down.coded", "down.shapes"
_TYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
_CODED_BYTES = 12
"""Bytes of a number in a coded array at most, its place included."""
_LARGEST = 2**40
"""Numbers in one weight of a downlink at most: what is computed from its shape stays exact."""


def _nothing(merchant: str) -> None:
    """Of no merchant anything is known."""


@dataclass(frozen=True)
class Codec:
    """What codes each part of a message; None for a part that travels as it is.

    error_feedback: merchants keep what coding loses of their updates. cache: merchants send soft labels only of proxy
    examples in which a probability changed by more than this; None for all of them.
    """

    weights: Chain | None = None
    soft_labels: Chain | None = None
    downlink_weights: Chain | None = None
    downlink_soft_labels: Chain | None = None
    error_feedback: bool = False
    cache: float | None = None

    @classmethod
    def of(cls, config: TransportConfig) -> Self:
        """What an experiment asks for. ConfigError for a stage or option that there is not."""
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
        """Whether merchants keep anything of an uplink for coding the next one."""
        return self.error_feedback or self.cache is not None

    def encode_downlink(self, down: Downlink, randomness: Randomness) -> RecordDict:
        """The records of a downlink, the same for every merchant."""
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
        """Inverse of ``encode_downlink``, of payloads of these ``kinds``, but for what coding loses. TrainingError if
        it is not coded as agreed, holds another kind, or cannot be read.

        proxy_shape: (proxy examples, classes) at this site. A few bytes may stand for many classes, so that coded soft
        labels of another shape are refused before there is any memory for them. student: likewise the weights that the
        global student of the request has, of which shapes alone count.
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
                raise ValueError("it is not as this site's experiment says: run the same one at both ends")
            if "weights" in coded and self.downlink_weights is not None:
                like, source = _announced(content.config_records[_SHAPES]), Reader(coded["weights"])
                if student is not None and not _alike(like, student):
                    raise ValueError("it announces weights of another student than it describes")
                sent = read_weights(source, like, self.downlink_weights)
                source.finish()
                if sent.rows or sent.arrays.keys() != like.keys():
                    raise ValueError("it announces weights of which it holds only a part")
                got.tensors["weights"] = {name: value.to(like[name].dtype) for name, value in sent.arrays.items()}
            if "soft_labels" in coded and self.downlink_soft_labels is not None:
                source = Reader(coded["soft_labels"])
                shape = _announced_labels(content.config_records[_SHAPES])
                if proxy_shape is not None and shape != proxy_shape:
                    raise ValueError(f"it announces soft labels of shape {list(shape)}, not {list(proxy_shape)}")
                values = read_soft_labels(source, shape, self.downlink_soft_labels)
                got.tensors["soft_labels"] = {"soft_labels": values}
                source.finish()
            return Downlink(got.numbers["round"], got.payloads(kinds), got.scalars)
        except Exception as error:  # as of what comes from a merchant: it must not stop the site
            raise TrainingError(f"the coded downlink cannot be read: {error}") from error

    def encode_uplink(
        self, up: Uplink, base: Weights, randomness: Randomness, kept: Kept | None = None
    ) -> tuple[RecordDict, Kept]:
        """The records of an uplink, and what the merchant is to keep for its next one, if this codec ``keeps``.

        base: the weights that the merchant was sent, of which names, shapes and types alone count; empty for none.
        kept: what it has kept; its soft labels only if the server has these too. UplinkRejected, naming the merchant,
        for what cannot be coded.
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
            labels = up.get(SoftLabels) or up.get(SelectedSoftLabels)
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
        """Inverse of ``encode_uplink``, of payloads of these ``kinds``, but for what coding loses.

        base: the global student's weights, as in ``encode_uplink``. proxy_shape: (proxy examples, classes). known: the
        soft labels that a merchant sent last, which ``cache`` builds on. room: how large its arrays may be.
        UplinkRejected for what is not coded as agreed, or of another kind; nothing larger than what was agreed is
        allocated for it.
        """
        merchant, got = records.read_uplink(content, room)
        try:
            self._decode(merchant, got, content, base, proxy_shape, known)
        except Exception as error:  # bytes from outside can break a reader in any way; none may stop the server
            raise UplinkRejected(f"merchant {merchant}: its uplink cannot be decoded: {error}") from error
        return records.uplink_of(merchant, got, kinds)

    def room_for(self, kinds: Kinds, context: Context) -> Room:
        """How large the arrays of an uplink may be, coded or not, that holds payloads of ``kinds``."""
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
            raise ValueError("its method sends an update without a downlink of weights, of which it would be one")
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
        """Put what is coded among the tensors that were received, as if it had not been."""
        coded = _read_bytes(content, _UP) if _UP in content else {}
        chains = {"weights": self.weights, "soft_labels": self.soft_labels}
        first = {"weights": StudentUpdate.records[0], "soft_labels": SoftLabels.records[0]}
        plain = [part for part, chain in chains.items() if chain is not None and first[part] in got.tensors]
        odd = [part for part in coded if chains.get(part) is None]
        if plain or odd:
            raise ValueError(f"{(plain + odd)[0]} are {'not ' if plain else ''}coded, against the experiment")
        if "weights" in coded and self.weights is not None:
            if not base:
                raise ValueError("it has an update of weights, and was sent none")
            source = Reader(coded["weights"])
            update = StudentUpdate.of(read_weights(source, base, self.weights))
            got.tensors.update({name: dict(values) for name, values in update.to_records().items()})
            source.finish()
        if "soft_labels" in coded and self.soft_labels is not None:
            source, (shape, whole) = Reader(coded["soft_labels"]), _answers(got, proxy_shape)
            if self.cache is None:
                values = read_soft_labels(source, shape, self.soft_labels)
            elif not whole:
                raise ValueError("it has soft labels of some proxy examples, where a cache needs them of all")
            else:
                values = read_changed(source, shape, self.soft_labels, known(merchant))
            source.finish()
            got.tensors["soft_labels"] = {"soft_labels": values}


def _chain(entries: Sequence[str | dict[str, Any]], stages: Registry) -> Chain:
    """Stages as an experiment lists them: by name, or as a table with ``stage`` and options."""
    built = []
    for entry in entries:
        options = {"stage": entry} if isinstance(entry, str) else dict(entry)
        built.append(stages.build(str(options.pop("stage")), options))
    return Chain(tuple(built))


def _answers(got: RawMessage, proxy_shape: tuple[int, int] | None) -> tuple[tuple[int, int], bool]:
    """Shape of an uplink's soft labels, and whether they are of the whole proxy set."""
    if proxy_shape is None:
        raise ValueError("it has soft labels, and was not asked for any")
    proxy, classes = proxy_shape
    if "answered" not in got.tensors:
        return (proxy, classes), True
    answered = answered_of(got.tensors, got.numbers)
    if tuple(answered.shape) != (proxy,):
        raise ValueError(f"answered has shape {list(answered.shape)}, not {[proxy]}")
    return (int(answered.sum()), classes), False


def _announcement(weights: Weights) -> dict[str, list[int] | list[str]]:
    """Names, types and shapes of weights, of which the bytes say nothing."""
    return {
        "names": list(weights),
        "types": [str(value.dtype).removeprefix("torch.") for value in weights.values()],
        "dimensions": [value.dim() for value in weights.values()],
        "sizes": [size for value in weights.values() for size in value.shape],
    }


def _announced(record: ConfigRecord) -> dict[str, Tensor]:
    """Weights of the shapes that a downlink announces, without memory of their own."""
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
    """Shape of the soft labels that a downlink announces."""
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
