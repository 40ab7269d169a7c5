"""Randomized labels themselves, with the texts that they are of: what label differential privacy releases."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.payloads.base import Context, Payload, Records, Room, is_integers, smallest_integers

MOST_EXAMPLES = 65_536
"""Maximum number of examples of a merchant in one message, fewer with many classes: ``most_examples``."""
MOST_BYTES = 16 * 2**20
"""Maximum bytes of the texts of all its examples."""
LONGEST = 2**16
"""Maximum bytes of the texts of an example."""
_MOST_OUTPUTS = 2**24
"""Maximum number of outputs of all its examples."""
_FIELDS = 2
"""Maximum number of texts of an example."""
_PLACE = torch.int32
"""Largest type of a length or a place."""


def most_examples(classes: int) -> int:
    """Return the maximum number of examples of a merchant in one message."""
    return min(MOST_EXAMPLES, _MOST_OUTPUTS // classes)


@dataclass(frozen=True)
class ReleasedLabels(Payload):
    """Texts, and the label of each that randomized response released.

    Only a mechanism that randomizes labels has such a payload: ``of_labels``. Examples are in the order of their texts,
    since that of a merchant's own table may be by label. All tensors but ``text`` have the smallest integer type that
    holds their values.

    :param text: all distinct texts in UTF-8, one after the other, uint8 ``[bytes]``
    :param lengths: bytes of each ``[texts]``
    :param places: the texts of each example, distinct rows ``[examples, fields]``
    :param labels: released classes ``[examples]``
    :param outputs: the class that is released for each class ``[examples, classes]``, see
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
        """Return the payload for ``examples``, whose own labels and order are not used.

        An example with more than ``LONGEST`` bytes, or the bytes of one before, is left out. Of too many for one
        message every second is sent, or every fourth ... in the order of their texts.

        :param labels: released classes, int64 ``[examples]``
        :param outputs: the class that is released for each class, int64 ``[examples, classes]``
        """
        fields = [examples.texts, *([] if examples.pairs is None else [examples.pairs])]
        texts = [tuple(text.encode("utf-8", "replace") for text in own) for own in zip(*fields, strict=True)]
        first = {own: row for row, own in reversed(list(enumerate(texts))) if sum(map(len, own)) <= LONGEST}
        rows = [first[own] for own in sorted(first)]
        most = most_examples(outputs.shape[1])
        while len(rows) > most or sum(len(text) for row in rows for text in texts[row]) > MOST_BYTES:
            rows = rows[::2]
        number: dict[bytes, int] = {}
        places = [[number.setdefault(text, len(number)) for text in texts[row]] for row in rows]
        whole = (
            torch.tensor([len(text) for text in number], dtype=torch.int64),
            torch.tensor(places, dtype=torch.int64).reshape(len(rows), len(fields)),
            labels[rows],
            outputs[rows],
        )
        text = torch.from_numpy(np.frombuffer(b"".join(number), dtype=np.uint8).copy())
        return cls(text, *map(smallest_integers, whole))

    @cached_property
    def texts(self) -> list[str]:
        """The distinct texts. Raise ValueError if they are not UTF-8."""
        ends, content = self.lengths.long().cumsum(0).tolist(), self.text.numpy().tobytes()
        return [content[end - length : end].decode() for end, length in zip(ends, self.lengths.tolist(), strict=True)]

    def examples(self, merchant: str) -> Examples:
        """Return the examples of ``merchant``, without their labels."""
        fields = [tuple(self.texts[place] for place in column) for column in self.places.T.tolist()]
        count = len(self.places)
        nothing = np.full(count, UNLABELED, dtype=np.int64)
        return Examples(fields[0], fields[1] if len(fields) > 1 else None, nothing, nothing, (merchant,) * count)

    def at_most(self, most: int, merchant: str) -> Self:
        """Return ``most`` of the examples of ``merchant``, at equal distances in their order, and their texts."""
        count = len(self.labels)
        if count <= most:
            return self
        rows = torch.arange(most) * count // most
        return self.of(self.examples(merchant).take(rows.numpy()), self.labels.long()[rows], self.outputs.long()[rows])

    def to_records(self) -> Records:
        """Return texts, lengths and indices."""
        names = ("text", "lengths", "places", "labels", "outputs")
        return {"released_labels": {name: getattr(self, name) for name in names}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        sent = records["released_labels"]
        whole = [sent[name] for name in ("lengths", "places", "labels", "outputs")]
        if not all(map(is_integers, whole)):
            raise TypeError("released labels have indices that are not integers")
        return cls(sent["text"], *whole)

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for the largest message of these classes."""
        most, kind = most_examples(context.classes), smallest_integers(torch.tensor([-1, context.classes - 1])).itemsize
        places = dict.fromkeys(("lengths", "places"), most * _FIELDS * _PLACE.itemsize)
        classes = {"labels": most * kind, "outputs": most * kind * context.classes}
        return {"released_labels": {"text": MOST_BYTES, **places, **classes}}

    def check_shape(self, context: Context) -> None:
        """Check for texts, a label and outputs of each example, of which there is at least one."""
        count = self.labels.numel()
        shapes = {"places": [count, context.fields], "labels": [count], "outputs": [count, context.classes]}
        for name, shape in {**shapes, "lengths": [self.lengths.numel()], "text": [self.text.numel()]}.items():
            found = getattr(self, name)
            if list(found.shape) != shape:
                raise ValueError(f"{name} of released labels have shape {list(found.shape)}, not {shape}")
            if not (found.dtype == torch.uint8 if name == "text" else is_integers(found)):
                raise ValueError(f"{name} of released labels are {found.dtype}, not integers of a message")
        if not 0 < count <= most_examples(context.classes):
            raise ValueError(f"there are {count} released labels, not from 1 to {most_examples(context.classes)}")

    def validate(self, context: Context) -> None:
        """Check that every text is there and none is too long, no example is there twice, and that each label is one
        that randomized response can release."""
        self.check_shape(context)
        lengths, places, labels, outputs = (
            values.long() for values in (self.lengths, self.places, self.labels, self.outputs)
        )
        total = sum(lengths.tolist())  # exact, where a sum of int64 could overflow
        if bool((lengths < 0).any()) or total != len(self.text):
            raise ValueError(f"the texts of released labels have {len(self.text)} bytes, not the stated lengths")
        if not bool(((places >= 0) & (places < len(lengths))).all()):
            raise ValueError(f"released labels refer to other texts than the {len(lengths)} that were sent")
        sizes = lengths[places].sum(dim=1)
        if int(sizes.max()) > LONGEST:
            raise ValueError(f"the texts of a released label have {int(sizes.max())} bytes, more than {LONGEST}")
        if int(sizes.sum()) > MOST_BYTES:
            raise ValueError(f"the texts of released labels have more than {MOST_BYTES} bytes in all examples")
        if not bool(((outputs >= -1) & (outputs < context.classes)).all()):
            raise ValueError(f"outputs must be classes from 0 to {context.classes - 1}, or -1")
        stands = outputs.gather(1, outputs.clamp_min(0))
        if not bool(((outputs < 0) | (stands == outputs)).all()):
            raise ValueError("a class is released for another class, and not for itself")
        if not bool(((labels >= 0) & (outputs == labels.unsqueeze(1)).any(dim=1)).all()):
            raise ValueError("a released label is none of the outputs of its example")
        try:
            distinct = len(set(self.texts))
        except UnicodeDecodeError as error:
            raise ValueError("the texts of released labels are not UTF-8") from error
        if distinct < len(lengths) or len(torch.unique(places, dim=0)) < len(places):
            raise ValueError("released labels have a text or an example twice")

    def scaled(self, factor: float, context: Context) -> Self:
        """Return other labels for a negative factor: of the k possible outputs, number i becomes number k - 1 - i."""
        if factor > 0.0:
            return self
        possible = (self.outputs.unsqueeze(2) == torch.arange(context.classes)).any(dim=1)
        place = possible.long().cumsum(dim=1)
        wanted = place[:, -1:] + 1 - place.gather(1, self.labels.long().unsqueeze(1))
        labels = (possible & (place == wanted)).long().argmax(dim=1)
        return type(self)(self.text, self.lengths, self.places, smallest_integers(labels), self.outputs)
