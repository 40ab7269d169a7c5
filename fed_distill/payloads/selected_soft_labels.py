"""Soft labels of those proxy examples only that a merchant has chosen."""

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
    """Probabilities of some proxy examples, and which ones these are.

    :param probabilities: ``[answered, classes]``, in the order of the proxy set; each row sums to 1.
    :param answered: which proxy examples have a row, bool ``[proxy]``.
    """

    probabilities: Tensor
    answered: Tensor
    name: ClassVar[str] = "selected_soft_labels"
    records: ClassVar[tuple[str, ...]] = ("soft_labels", "answered")
    disclosure: ClassVar[str] = "its student's soft labels on some proxy examples, and on which"
    covered: ClassVar[str | None] = "chosen and computed by a student trained with DP-SGD, at no further cost"

    def to_records(self) -> Records:
        """The rows, and the mask as bits, eight to a byte."""
        bits = torch.from_numpy(np.packbits(self.answered.cpu().numpy()))
        return {"soft_labels": {"soft_labels": self.probabilities}, "answered": {"bits": bits}}

    def numbers(self) -> Mapping[str, int]:
        """How many bits of the mask count."""
        return {"proxy": len(self.answered)}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(records["soft_labels"]["soft_labels"], answered_of(records, numbers))

    @classmethod
    def room(cls, context: Context) -> Room:
        """As for soft labels of all examples, and a bit for each."""
        labels = {"soft_labels": 8 * context.proxy * context.classes}
        return {"soft_labels": labels, "answered": {"bits": (context.proxy + 7) // 8}}

    def check_shape(self, context: Context) -> None:
        """A bit for each proxy example, and a row for each that is answered."""
        if tuple(self.answered.shape) != (context.proxy,):
            raise ValueError(f"answered has shape {list(self.answered.shape)}, not {[context.proxy]}")
        check_rows(self.probabilities, int(self.answered.sum()), context.classes)

    def validate(self, context: Context) -> None:
        """As above, with rows that are probabilities."""
        self.check_shape(context)
        check_probabilities(self.probabilities)

    def scaled(self, factor: float, context: Context) -> Self:
        """softmax(factor * log p), of the same examples."""
        return replace(self, probabilities=powered(self.probabilities, factor))


def answered_of(records: Records, numbers: Mapping[str, int]) -> Tensor:
    """The mask, bool ``[proxy]``; ValueError where as many bytes hold no mask of that size."""
    bits, size = records["answered"]["bits"], numbers["proxy"]
    if bits.dtype != torch.uint8 or bits.dim() != 1 or size < 0 or not 0 <= 8 * len(bits) - size < 8:
        raise ValueError(f"{list(bits.shape)} bytes of {bits.dtype} are no mask of {size}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool))
