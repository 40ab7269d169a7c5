"""Soft labels of the proxy examples that a merchant is most expert on, with its expertise on each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from fed_distill.payloads.base import Context, Records, Room
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels

LEVELS = 255
"""Number of steps of the expertise between 0 and 1, so that one takes a byte."""


@dataclass(frozen=True)
class ExpertSoftLabels(SelectedSoftLabels):
    """Probabilities of some proxy examples, with a mask of these examples and the expertise on each.

    :param levels: expertise on each answered example in steps of 1 / ``LEVELS``, uint8 ``[answered]``
    """

    levels: Tensor
    name: ClassVar[str] = "expert_soft_labels"
    records: ClassVar[tuple[str, ...]] = ("soft_labels", "answered", "expertise")
    disclosure: ClassVar[str] = (
        "its student's soft labels on some proxy examples, and how close each of these is to its own texts, which "
        "reveals its assortment"
    )
    covered: ClassVar[str | None] = None
    from_texts: ClassVar[bool] = True

    @classmethod
    def most_expert(cls, probabilities: Tensor, expertise: Tensor, most: int) -> Self:
        """Select the examples with the highest expertise above half a step, the first of ties.

        :param probabilities: soft labels of all examples ``[proxy, classes]``
        :param expertise: expertise on all examples, in [0, 1], ``[proxy]``
        :param most: maximum number of selected examples
        """
        levels = (expertise * LEVELS).round().to(torch.uint8)
        answered = levels > 0
        return cls(probabilities[answered], answered, levels[answered]).at_most(most)

    @property
    def expertise(self) -> Tensor:
        """Expertise on each answered example, in [0, 1], float64 ``[answered]``."""
        return self.levels.double() / LEVELS

    def at_most(self, most: int) -> Self:
        """Return the ``most`` answers with the highest expertise, the first of ties."""
        if len(self.levels) <= most:
            return self
        chosen = self.levels.sort(descending=True, stable=True).indices[:most].sort().values
        answered = torch.zeros_like(self.answered)
        answered[self.answered.nonzero().squeeze(1)[chosen]] = True
        return replace(self, probabilities=self.probabilities[chosen], answered=answered, levels=self.levels[chosen])

    def to_records(self) -> Records:
        """Return the rows, the mask as bits, and a byte for each expertise."""
        return {**super().to_records(), "expertise": {"levels": self.levels}}

    @classmethod
    def from_records(cls, records: Records, numbers: Mapping[str, int]) -> Self:
        """Inverse of ``to_records``."""
        selected = SelectedSoftLabels.from_records(records, numbers)
        return cls(selected.probabilities, selected.answered, records["expertise"]["levels"])

    @classmethod
    def room(cls, context: Context) -> Room:
        """Return room for answers to all examples."""
        return {**super().room(context), "expertise": {"levels": context.proxy}}

    def check_shape(self, context: Context) -> None:
        """Check for a bit for each proxy example, and a row and an expertise for each answered one."""
        super().check_shape(context)
        if self.levels.dtype != torch.uint8 or self.levels.shape != self.probabilities.shape[:1]:
            raise ValueError(
                f"expertise is {self.levels.dtype} of shape {list(self.levels.shape)}, not torch.uint8 of shape "
                f"{list(self.probabilities.shape[:1])}"
            )

    def scaled(self, factor: float, context: Context) -> Self:
        """Return softmax(factor * log p) for the same examples, with ``|factor|`` times the expertise, at most 1."""
        levels = (abs(factor) * self.levels.double()).round().clamp(0, LEVELS).to(torch.uint8)
        return replace(super().scaled(factor, context), levels=levels)
