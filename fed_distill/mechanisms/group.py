"""Unit ``group``: hides all pairs of a merchant's offer, query or user, by DP-SGD that samples and clips groups."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill.config import GroupsConfig
from fed_distill.data.examples import Examples, Task, members
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.at_merchants import TRUSTED, AtMerchants
from fed_distill.mechanisms.base import Words
from fed_distill.privacy.exposure import MOVED_BY

GROUPS = {
    "group": "examples with the same group number",
    "text": "examples with the same first text",
    "pair": "examples with the same second text",
}
"""What a group is, by ``privacy.group``."""


@dataclass(frozen=True)
class ByGroup(AtMerchants):
    """DP-SGD whose members are groups of examples, by ``privacy.group``."""

    settings: GroupsConfig = field(default_factory=GroupsConfig)
    moved_by: ClassVar[float] = MOVED_BY["group"]
    grouped: ClassVar[bool] = True

    @property
    def words(self) -> Words:
        """What is promised to a group."""
        return Words(
            hides="all examples of any one group of a merchant, added or removed together",
            trusted=TRUSTED,
            title="A group of a merchant's examples",
            promise="Whoever sees all that a merchant sends, in all rounds, and knows everything else, can hardly tell "
            "whether any one group of that merchant's examples, such as all pairs of one offer, was used.",
            counts="a merchant's groups of training examples",
            assumption="In a private step each group of a merchant takes part by its own coin flip (Poisson sampling) "
            "with all of its examples, and the sum of their gradients is clipped before noise is added. Two data sets "
            "are neighbours if a group of one merchant is added or removed.",
        )

    def kind(self) -> str:
        """By what examples are grouped."""
        return self.settings.group

    def groups(self, examples: Examples) -> Tensor | None:
        """To which group each example belongs, int64 ``[examples]``, with numbers from 0 that are all in use."""
        return torch.from_numpy(members(examples, self.settings.group))

    def check_task(self, task: Task) -> None:
        """ConfigError for groups by a second text where there is none."""
        if self.settings.group == "pair" and not task.pair:
            raise ConfigError(
                f"privacy.group = 'pair' groups examples by their second text, and task {task.name} has one text only: "
                "set privacy.group to 'text' or 'group'"
            )

    def group(self) -> str | None:
        """What a group is, in words."""
        return GROUPS[self.settings.group]

    def about_groups(self, group: str | None, largest: int | None) -> list[str]:
        """How many examples a member has."""
        size = "not known here, since sites do not tell" if largest is None else f"{largest:,} at most"
        return [f"The unit is a group, {group}: how many examples one group has is {size}."]
