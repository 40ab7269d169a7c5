"""Prototypes: mean representations of each class (Tan et al., "FedProto: Federated prototype learning across
heterogeneous clients", AAAI 2022, eq. 3)."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.payloads.base import Context, Payload, Records, Room

LARGEST = 1e6
"""Maximum magnitude of a prototype's entry, so that means of them are accepted by sites."""


@dataclass(frozen=True)
class Prototypes(Payload):
    """A student's mean representations by true class.

    :param means: row ``c`` is the mean representation of the examples with label ``c``, float32 ``[classes, width]``; 0
        without examples
    :param present: whether the class has examples, bool ``[classes]``
    """

    means: Tensor
    present: Tensor
    name: ClassVar[str] = "prototypes"
    records: ClassVar[tuple[str, ...]] = ("prototypes",)
    disclosure: ClassVar[str] = "its student's mean representation of each class of its own examples"

    @classmethod
    def over(cls, representations: Tensor, labels: Tensor, classes: int) -> Self:
        """Compute the means of ``representations`` ``[examples, width]`` by label; ``labels``: int64 ``[examples]``."""
        members = F.one_hot(labels, classes).to(torch.float64)
        counts = members.sum(dim=0)
        means = members.T @ representations.double() / counts.clamp_min(1.0).unsqueeze(1)
        return cls(means.float(), counts > 0)

    def to_records(self) -> Records:
        """Return both arrays."""
        return {"prototypes": {"means": self.means, "present": self.present}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(**records["prototypes"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for rows as wide as the widest weight of the global student, and a byte per class."""
        return {"prototypes": {"means": 4 * context.classes * _widest(context), "present": context.classes}}

    def check_shape(self, context: Context) -> None:
        """Check for a row for each class, at most as wide as the widest weight of the global student."""
        means, present, classes, widest = self.means, self.present, context.classes, _widest(context)
        fits = means.dim() == 2 and len(means) == classes and 1 <= means.shape[1] <= widest
        if not fits or present.shape != (classes,):
            raise ValueError(
                f"prototypes have shapes {list(means.shape)} and {list(present.shape)}, not [{classes}, width] with a "
                f"width of at most {widest} and [{classes}]"
            )
        if means.dtype != torch.float32 or present.dtype != torch.bool:
            raise ValueError(f"prototypes have types {means.dtype} and {present.dtype}, not torch.float32, torch.bool")

    def validate(self, context: Context) -> None:
        """Check for moderate values of each present class, and zeros for the others."""
        self.check_shape(context)
        if not float(self.means.abs().max()) <= LARGEST:
            raise ValueError(f"prototypes have values that are not finite, or above {LARGEST:g}")
        if bool(self.means[~self.present].any()):
            raise ValueError("prototypes of a class without examples are not 0")

    def scaled(self, factor: float, context: Context) -> Self:
        """Return them multiplied by ``factor``, at most ``LARGEST``."""
        return type(self)((factor * self.means).clamp(-LARGEST, LARGEST), self.present)

    def structure(self) -> Hashable:
        """Return the width: representations of other students cannot be averaged."""
        return self.means.shape[1]


def _widest(context: Context) -> int:
    return max((size for value in context.weights.values() for size in value.shape), default=1)
