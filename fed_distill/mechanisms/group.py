"""Unit ``group``: protects all examples of a group, such as one offer, query or user, by DP-SGD over groups."""

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
"""Description of a group for each value of ``privacy.group``."""


@dataclass(frozen=True)
class ByGroup(AtMerchants):
    """DP-SGD with groups of examples as members, see ``privacy.group``."""

    settings: GroupsConfig = field(default_factory=GroupsConfig)
    moved_by: ClassVar[float] = MOVED_BY["group"]
    grouped: ClassVar[bool] = True

    @property
    def words(self) -> Words:
        """The guarantee for a group."""
        return Words(
            hides="all examples of any one group of a merchant, added or removed together",
            trusted=TRUSTED,
            title="A group of a merchant's examples",
            promise="An observer of everything that a merchant sends, in all rounds, with any other knowledge, can "
            "hardly tell whether any one group of that merchant's examples, such as all pairs of one offer, was used.",
            counts="a merchant's groups of training examples",
            assumption="In a private step each group of a merchant is sampled independently (Poisson sampling) with "
            "all of its examples, and its gradient is clipped before noise is added. Two data sets are neighbours if "
            "a group of one merchant is added or removed.",
        )

    def kind(self) -> str:
        """By what examples are grouped."""
        return self.settings.group

    def groups(self, examples: Examples) -> Tensor | None:
        """To which group each example belongs, int64 ``[examples]``, with numbers from 0 that are all in use."""
        return torch.from_numpy(members(examples, self.settings.group))

    def check_task(self, task: Task) -> None:
        """Raise ConfigError for groups by second text if the task has one text."""
        if self.settings.group == "pair" and not task.pair:
            raise ConfigError(
                f"privacy.group = 'pair' groups examples by their second text, and task {task.name} has one text: "
                "set privacy.group to 'text' or 'group'"
            )

    def group(self) -> str | None:
        """Return a description of a group."""
        return GROUPS[self.settings.group]

    def about_groups(self, group: str | None, largest: int | None) -> list[str]:
        """Return a sentence about the size of a group."""
        size = "unknown here, because sites do not send it" if largest is None else f"at most {largest:,}"
        return [f"The unit is a group, {group}: the number of examples per group is {size}."]
