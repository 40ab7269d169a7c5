"""Interface of teachers, assistants and students: encoding of texts as tensors, and logits from tensors.

A model is a ``torch.nn.Module`` that also encodes its own input. Encoding is separate from the forward pass, so that a
merchant's texts are encoded once instead of once per epoch; ``narrowed`` builds the same model over some rows of its
embedding tables, so that a merchant trains and sends only the rows that its data use.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fed_distill.errors import ModelError
from fed_distill.text.encoded import Encoded


@dataclass(frozen=True)
class Outputs:
    """logits: ``[batch, classes]``. hidden: hidden states from input to output, each ``[batch, length, width]``,
    on request. used: mask of positions with text, bool ``[batch, length]``; None for all. shared: for a pair of
    students (``models.pair``), the outputs of the shared one; the other fields are then of the merchant's own."""

    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None
    used: Tensor | None = None
    shared: "Outputs | None" = None

    def to(self, dtype: torch.dtype) -> "Outputs":
        """Convert to another precision."""
        return self._each(lambda values: values if values.dtype == torch.bool else values.to(dtype))

    def first(self, count: int) -> "Outputs":
        """Return the first ``count`` examples, detached from the graph."""
        return self._each(lambda values: values[:count].detach())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        return Outputs(
            change(self.logits),
            None if self.hidden is None else tuple(map(change, self.hidden)),
            None if self.used is None else change(self.used),
            None if self.shared is None else self.shared._each(change),
        )


class TextModel(nn.Module, ABC):
    """A text or text-pair classifier.

    A custom model is a subclass with ``encode`` and ``forward``, whose constructor takes ``classes`` (their number),
    ``pair`` (whether examples have a second text) and typed options as keyword arguments. A student's constructor also
    runs on torch's ``meta`` device, where tensors have no values, so that sizes from others are compared before memory
    is allocated: it must not read values of tensors that it creates.

    ``kind`` is the registry name or import path, ``settings`` the JSON-ready keyword arguments that rebuild the
    model; ``build_student`` fills them in.
    ``tables`` maps each embedding parameter's name to the encoded fields whose integers index its rows.
    Row 0 of a table is padding: it is zero or never used.
    ``of_teacher`` says that its initial weights are copied or computed from the teacher's; controls without a teacher
    draw them anew. A model without it is built for these controls without a teacher.
    ``towers`` says that each text has a vector of its own, independent of the other text. The first hidden state is
    then these vectors side by side, ``[batch, 1, texts * width]``.
    ``vectors_of`` names the encoded fields for which ``vectors`` computes a vector of each row, independent of other
    fields; ``forward`` takes either. Predictions compute the vectors of texts that recur once.
    ``files`` maps a setting that is a whole file's text (a tokenizer) to the name of that file in a saved model.
    ``unsaved_prefix`` begins the name of every weight, and is left out in a saved model, so that the library of the
    module inside reads its own names.
    ``zero_shot`` says whether the model predicts the classes without fine-tuning, ``trainable`` whether it can be
    fine-tuned, for teachers.
    """

    kind: str = ""
    settings: Mapping[str, Any] = {}
    tables: Mapping[str, tuple[str, ...]] = {}
    towers: bool = False
    vectors_of: tuple[str, ...] = ()
    of_teacher: bool = False
    files: Mapping[str, str] = {}
    unsaved_prefix: str = ""
    zero_shot: ClassVar[bool] = False
    trainable: ClassVar[bool] = True

    @abstractmethod
    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Turn ``n`` texts (and their pairs) into row-aligned tensors."""

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """How ``encode`` turns texts into integers, JSON-ready, for programs in other languages: ``algorithm`` and its
        parameters. A model of another package is its own documentation."""
        return {"algorithm": self.kind}

    @abstractmethod
    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a collated batch."""

    def vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors ``[n, width]`` of rows ``[n, length]`` of a field of ``vectors_of``."""
        raise ModelError(f"{type(self).__name__} names {self.vectors_of} in vectors_of: define vectors, too")

    def covers(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Tensor:
        """Return which of ``n`` examples the model has a prediction for, bool ``[n]``: all, unless it is a file."""
        return torch.ones(len(texts), dtype=torch.bool)

    def narrowed(self, rows: Mapping[str, Tensor]) -> Self:
        """Return a copy with only the given sorted rows of its tables (including row 0), and equal other weights.

        Its encoded input must be renumbered to positions in ``rows``. Such a copy is for training and prediction; only
        the whole model can be saved and rebuilt.
        """
        parameters = dict(self.named_parameters())
        copied: dict[int, Any] = {
            id(parameters[name]): nn.Parameter(parameters[name].detach()[index], parameters[name].requires_grad)
            for name, index in rows.items()
        }
        narrow = copy.deepcopy(self, copied)
        for module in narrow.modules():
            if isinstance(module, nn.Embedding):
                module.num_embeddings = len(module.weight)
        return narrow

    def collate(self, encoded: Encoded, index: Tensor) -> dict[str, Tensor]:
        """Select the examples ``index`` and remove trailing columns that are padding in all of them."""
        return {name: trimmed(values[index]) for name, values in encoded.items()}

    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, ``model.json`` and the files named in ``files``."""
        if not self.kind:
            raise ModelError(
                f"a {type(self).__name__} without kind and settings cannot be saved: create it with build_student"
            )
        folder.mkdir(parents=True, exist_ok=True)
        settings = dict(self.settings)
        files = {setting: file for setting, file in self.files.items() if settings.get(setting)}
        for setting, file in files.items():
            (folder / file).write_text(settings.pop(setting), encoding="utf-8")
        prefix = self.unsaved_prefix
        weights = {name.removeprefix(prefix): value.contiguous() for name, value in self.state_dict().items()}
        content = save(weights, {"format": "pt"})  # save_file does not report a full disk
        (folder / "model.safetensors").write_bytes(content)
        description = {"kind": self.kind, "settings": settings, "files": files, "unsaved_prefix": prefix}
        (folder / "model.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


@runtime_checkable
class FitsItself(Protocol):
    """A teacher that is fitted by a procedure of its own instead of gradient steps; it is not ``trainable``."""

    def fit(self, texts: Sequence[str], pairs: Sequence[str] | None, labels: npt.NDArray[np.int64]) -> None:
        """Fit the model to ``n`` labelled examples, whose ``labels`` are class indices ``[n]``."""
        ...


def trimmed(values: Tensor) -> Tensor:
    """Return padded integers ``[n, length, ...]`` without what is padding in all rows at the end of each dimension;
    return other values as they are."""
    if values.dim() < 2 or values.is_floating_point():
        return values
    for dimension in range(1, values.dim()):
        others = [other for other in range(values.dim()) if other != dimension]
        used = values.ne(0).sum(dim=others).nonzero()
        values = values.narrow(dimension, 0, int(used[-1]) + 1 if len(used) else 1)
    return values


def read_model_files(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Read a folder of ``TextModel.save``: kind, settings and weights; raise ModelError if it is incomplete."""
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        settings = dict(description["settings"])
        for setting, file in description["files"].items():
            if Path(file).name != file:
                raise ValueError(f"file {file!r} is outside the folder")
            settings[setting] = (folder / file).read_text(encoding="utf-8")
        prefix = str(description.get("unsaved_prefix", ""))  # a model of an earlier version has whole names
        weights = {prefix + name: value for name, value in load_file(folder / "model.safetensors").items()}
        return str(description["kind"]), settings, weights
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is not a saved model (model.json, model.safetensors and the files named in it): {error}"
        ) from error
