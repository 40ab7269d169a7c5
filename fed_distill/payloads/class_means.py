"""Mean soft labels of each class, over examples and then over merchants.

Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation under
non-IID private data", 2018, algorithm 1: a device sends the means of its outputs by label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fed_distill.models.weights import is_finite
from fed_distill.payloads.base import Context, Payload, Records, Room, powered, rows_are_probabilities


@dataclass(frozen=True)
class ClassMeans(Payload):
    """A student's mean predictions by true class.

    :param probabilities: row ``c`` is the mean of the student's class probabilities over the examples with label ``c``,
        ``[classes, classes]``; 0 without examples
    :param present: whether the class has examples, bool ``[classes]``
    """

    probabilities: Tensor
    present: Tensor
    name: ClassVar[str] = "class_means"
    records: ClassVar[tuple[str, ...]] = ("class_means",)
    disclosure: ClassVar[str] = "its student's mean soft labels of each class on its own examples"

    @classmethod
    def over(cls, probabilities: Tensor, labels: Tensor) -> Self:
        """Compute the means of ``probabilities`` ``[examples, classes]`` by label; ``labels``: int64 ``[examples]``."""
        members = F.one_hot(labels, probabilities.shape[1]).to(torch.float64)
        counts = members.sum(dim=0)
        means = members.T @ probabilities.double() / counts.clamp_min(1.0).unsqueeze(1)
        return cls(means.to(probabilities.dtype), counts > 0)

    def to_records(self) -> Records:
        """Return both arrays."""
        return {"class_means": {"probabilities": self.probabilities, "present": self.present}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        return cls(**records["class_means"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for ``[classes, classes]`` values and a byte per class."""
        return {"class_means": {"probabilities": 8 * context.classes**2, "present": context.classes}}

    def check_shape(self, context: Context) -> None:
        """Check for a row for each class."""
        square, row = (context.classes, context.classes), (context.classes,)
        if tuple(self.probabilities.shape) != square or tuple(self.present.shape) != row:
            raise ValueError(
                f"class means have shapes {list(self.probabilities.shape)} and {list(self.present.shape)}, not "
                f"{list(square)} and {list(row)}"
            )

    def validate(self, context: Context) -> None:
        """Check for a row of probabilities for each present class, and zeros for the others."""
        self.check_shape(context)
        means, present = self.probabilities, self.present
        if not means.is_floating_point() or present.dtype != torch.bool:
            raise ValueError(f"class means have types {means.dtype} and {present.dtype}")
        if not is_finite(means) or bool((means < 0.0).any()):
            raise ValueError("class means are negative or not finite")
        if not rows_are_probabilities(means, present):
            raise ValueError("class means do not sum to 1, or to 0 for a class without examples")

    def scaled(self, factor: float, context: Context) -> Self:
        """Return softmax(factor * log p) for the present classes."""
        there = self.present.unsqueeze(1)
        return type(self)(torch.where(there, powered(self.probabilities, factor), 0.0), self.present)
