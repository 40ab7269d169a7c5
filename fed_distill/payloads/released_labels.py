"""Randomized labels themselves, with the texts that they are of: what label differential privacy releases."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.payloads.base import Context, Payload, Records, Room, is_integers, smallest_integers

MOST_EXAMPLES = 65_536
"""Maximum number of examples of a merchant in one message."""
MOST_BYTES = 16 * 2**20
"""Maximum bytes of all its texts, each counted once."""
_FIELDS = 2
"""Maximum number of texts of an example."""


@dataclass(frozen=True)
class ReleasedLabels(Payload):
    """Texts, and the label of each that randomized response released. No texts are sent twice.

    Only a mechanism that randomizes labels has such a payload: ``of_labels``.

    :param text: all distinct texts in UTF-8, one after the other, uint8 ``[bytes]``
    :param lengths: bytes of each, int64 ``[texts]``
    :param places: the texts of each example, int64 ``[examples, fields]``
    :param labels: released classes, int64 ``[examples]``
    :param outputs: the class that is released for each class, int64 ``[examples, classes]``, see
        ``privacy.randomized_response``
    """

    text: Tensor
    lengths: Tensor
    places: Tensor
    labels: Tensor
    outputs: Tensor
    name: ClassVar[str] = "released_labels"
    records: ClassVar[tuple[str, ...]] = ("released_labels",)
    disclosure: ClassVar[str] = "the texts of its labelled training examples, and a randomized label of each"
    covered: ClassVar[str | None] = None
    of_labels: ClassVar[bool] = True

    @classmethod
    def of(cls, examples: Examples, labels: Tensor, outputs: Tensor) -> Self:
        """Return the payload for ``examples``, whose own labels are not used.

        :param labels: released classes, int64 ``[examples]``
        :param outputs: the class that is released for each class, int64 ``[examples, classes]``
        """
        fields = [examples.texts, *([] if examples.pairs is None else [examples.pairs])]
        number: dict[str, int] = {}
        places = [[number.setdefault(text, len(number)) for text in field] for field in fields]
        encoded = [text.encode("utf-8", "replace") for text in number]
        return cls(
            torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()),
            torch.tensor([len(text) for text in encoded], dtype=torch.int64),
            torch.tensor(places, dtype=torch.int64).T.contiguous(),
            labels,
            outputs,
        )

    @cached_property
    def texts(self) -> list[str]:
        """The distinct texts. Raise ValueError if they are not UTF-8."""
        ends = np.cumsum(self.lengths.numpy())
        content = self.text.numpy().tobytes()
        return [content[end - length : end].decode() for end, length in zip(ends, self.lengths.tolist(), strict=True)]

    def examples(self, merchant: str) -> Examples:
        """Return the examples of ``merchant``, without their labels."""
        fields = [tuple(self.texts[place] for place in column) for column in self.places.T.tolist()]
        count = len(self.places)
        nothing = np.full(count, UNLABELED, dtype=np.int64)
        return Examples(fields[0], fields[1] if len(fields) > 1 else None, nothing, nothing, (merchant,) * count)

    def at_most(self, most: int) -> Self:
        """Return ``most`` of the examples, at equal distances in their order."""
        count = len(self.labels)
        if count <= most:
            return self
        rows = torch.arange(most) * count // most
        return replace(self, places=self.places[rows], labels=self.labels[rows], outputs=self.outputs[rows])

    def to_records(self) -> Records:
        """Return texts, lengths and indices, in the smallest integer types that hold them."""
        indices = {"lengths": self.lengths, "places": self.places, "labels": self.labels, "outputs": self.outputs}
        whole = {name: smallest_integers(values) for name, values in indices.items()}
        return {"released_labels": {"text": self.text, **whole}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        sent = records["released_labels"]
        whole = [sent[name] for name in ("lengths", "places", "labels", "outputs")]
        if not all(map(is_integers, whole)):
            raise TypeError("released labels have indices that are not integers")
        return cls(sent["text"], *(values.long() for values in whole))

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the largest message, whatever a round is of."""
        each = {"lengths": _FIELDS, "places": _FIELDS, "labels": 1, "outputs": context.classes}
        return {
            "released_labels": {"text": MOST_BYTES, **{name: 8 * MOST_EXAMPLES * count for name, count in each.items()}}
        }

    def check_shape(self, context: Context) -> None:
        """Check for texts, a label and outputs of each example."""
        count = self.labels.numel()
        shapes = {"places": [count, context.fields], "labels": [count], "outputs": [count, context.classes]}
        for name, shape in shapes.items():
            found = getattr(self, name)
            if list(found.shape) != shape:
                raise ValueError(f"{name} of released labels have shape {list(found.shape)}, not {shape}")
            if found.dtype != torch.int64:
                raise ValueError(f"{name} of released labels are {found.dtype}, not {torch.int64}")
        for name, kind in (("text", torch.uint8), ("lengths", torch.int64)):
            found = getattr(self, name)
            if found.dtype != kind or found.dim() != 1:
                raise ValueError(
                    f"{name} of released labels is {found.dtype} {list(found.shape)}, not a list of {kind}"
                )
        if count > MOST_EXAMPLES:
            raise ValueError(f"there are {count} released labels, and at most {MOST_EXAMPLES} are allowed")

    def validate(self, context: Context) -> None:
        """Check that every text is there, and that each label is one that randomized response can release."""
        self.check_shape(context)
        total = sum(self.lengths.tolist())  # exact, where a sum of int64 could overflow
        if bool((self.lengths < 0).any()) or total != len(self.text):
            raise ValueError(f"the texts of released labels have {len(self.text)} bytes, not the stated lengths")
        if not bool(((self.places >= 0) & (self.places < len(self.lengths))).all()):
            raise ValueError(f"released labels refer to other texts than the {len(self.lengths)} that were sent")
        if not bool(((self.outputs >= -1) & (self.outputs < context.classes)).all()):
            raise ValueError(f"outputs must be classes from 0 to {context.classes - 1}, or -1")
        stands = self.outputs.gather(1, self.outputs.clamp_min(0))
        if not bool(((self.outputs < 0) | (stands == self.outputs)).all()):
            raise ValueError("a class is released for another class, and not for itself")
        if not bool(((self.labels >= 0) & (self.outputs == self.labels.unsqueeze(1)).any(dim=1)).all()):
            raise ValueError("a released label is none of the outputs of its example")
        try:
            self.texts  # noqa: B018 - decodes them
        except UnicodeDecodeError as error:
            raise ValueError("the texts of released labels are not UTF-8") from error

    def scaled(self, factor: float, context: Context) -> Self:
        """Return other labels for a negative factor: of the k possible outputs, number i becomes number k - 1 - i."""
        if factor > 0.0:
            return self
        classes = torch.arange(context.classes)
        possible = (self.outputs.unsqueeze(2) == classes).any(dim=1)
        place = possible.long().cumsum(dim=1)
        wanted = place[:, -1:] + 1 - place.gather(1, self.labels.unsqueeze(1))
        return replace(self, labels=(possible & (place == wanted)).long().argmax(dim=1))
