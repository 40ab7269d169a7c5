"""Soft labels of the proxy examples selected by a merchant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fed_distill.payloads.base import Context, Payload, Records, Room, powered
from fed_distill.payloads.soft_labels import check_probabilities, check_rows


@dataclass(frozen=True)
class SelectedSoftLabels(Payload):
    """Probabilities of some proxy examples, with a mask of these examples.

    :param probabilities: ``[answered, classes]``, in the order of the proxy set; each row sums to 1
    :param answered: whether a proxy example has a row, bool ``[proxy]``
    """

    probabilities: Tensor
    answered: Tensor
    name: ClassVar[str] = "selected_soft_labels"
    records: ClassVar[tuple[str, ...]] = ("soft_labels", "answered")
    disclosure: ClassVar[str] = "its student's soft labels on some proxy examples, and on which"
    covered: ClassVar[str | None] = "chosen and computed by a student trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """Return the rows, and the mask as bits, eight per byte."""
        bits = torch.from_numpy(np.packbits(self.answered.cpu().numpy()))
        return {"soft_labels": {"soft_labels": self.probabilities}, "answered": {"bits": bits}}

    def numbers(self) -> Mapping[str, int]:
        """Return the number of bits of the mask."""
        return {"proxy": len(self.answered)}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["soft_labels"]["soft_labels"], answered_of(records, numbers))

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for soft labels of all examples, and a bit for each."""
        labels = {"soft_labels": 8 * context.proxy * context.classes}
        return {"soft_labels": labels, "answered": {"bits": (context.proxy + 7) // 8}}

    def check_shape(self, context: Context) -> None:
        """Check for a bit for each proxy example, and a row for each selected one."""
        if tuple(self.answered.shape) != (context.proxy,):
            raise ValueError(f"answered has shape {list(self.answered.shape)}, not {[context.proxy]}")
        check_rows(self.probabilities, int(self.answered.sum()), context.classes)

    def validate(self, context: Context) -> None:
        """Check shapes, and that rows are probabilities."""
        self.check_shape(context)
        check_probabilities(self.probabilities)

    def scaled(self, factor: float, context: Context) -> Self:
        """Return softmax(factor * log p) for the same examples."""
        return replace(self, probabilities=powered(self.probabilities, factor))


def answered_of(records: Records, numbers: Mapping[str, int]) -> Tensor:
    """Return the mask, bool ``[proxy]``; raise ValueError if the number of bytes does not fit its size."""
    bits, size = records["answered"]["bits"], numbers["proxy"]
    if bits.dtype != torch.uint8 or bits.dim() != 1 or size < 0 or not 0 <= 8 * len(bits) - size < 8:
        raise ValueError(f"a mask of {size} bits cannot have shape {list(bits.shape)} of {bits.dtype}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool))
