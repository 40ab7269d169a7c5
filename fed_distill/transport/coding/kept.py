"""A merchant's compression state between uplinks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from fed_distill.models.weights import PartialWeights


@dataclass(frozen=True)
class Kept:
    """residual: compression error of its update, which error feedback adds to the next. soft_labels: the server's
    cached soft labels of the merchant, ``[proxy, classes]``; None without any."""

    residual: PartialWeights = field(default_factory=lambda: PartialWeights({}))
    soft_labels: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Convert to tensors by name, for storage."""
        labels = {} if self.soft_labels is None else {"soft_labels": self.soft_labels}
        parts = {"arrays": self.residual.arrays, "rows": self.residual.rows}
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()} | labels

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor] | None) -> Self:
        """Inverse of ``tensors``; ``tensors`` is None before the first round."""
        found = dict(tensors or {})
        labels = found.pop("soft_labels", None)
        parts: dict[str, dict[str, Tensor]] = {"arrays": {}, "rows": {}}
        for key, value in found.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        return cls(PartialWeights(parts["arrays"], parts["rows"]), labels)
