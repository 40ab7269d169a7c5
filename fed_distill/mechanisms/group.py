"""Unit ``group``: protects all examples of a group, such as one offer, query or user, by DP-SGD over groups."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill.config import Experiment, GroupsConfig
from fed_distill.config.data import ClicksConfig
from fed_distill.data.examples import Examples, FederatedData, Task, members
from fed_distill.data.groups import GroupedBy, merchants_of_a_group
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.at_merchants import TRUSTED, AtMerchants
from fed_distill.mechanisms.base import Words
from fed_distill.privacy.exposure import MOVED_BY

GROUPS = {
    "group": "examples with the same group number",
    "user": "all examples of a user, who is at one merchant",
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
        if self.settings.group == "user":
            return _OF_USERS
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

    def kind(self) -> GroupedBy:
        """By what examples are grouped."""
        return "group" if self.settings.group == "user" else self.settings.group

    def groups(self, examples: Examples) -> Tensor | None:
        """To which group each example belongs, int64 ``[examples]``, with numbers from 0 that are all in use."""
        return torch.from_numpy(members(examples, self.kind()))

    def check_task(self, task: Task) -> None:
        """Raise ConfigError for groups by second text if the task has one text."""
        if self.settings.group == "pair" and not task.pair:
            raise ConfigError(
                f"privacy.group = 'pair' groups examples by their second text, and task {task.name} has one text: "
                "set privacy.group to 'text' or 'group'"
            )

    def check_data(self, experiment: Experiment, data: FederatedData) -> None:
        """Raise ConfigError for users who are at several merchants, or whose data change examples of others.

        Noise hides one group at one merchant. It hides a user if these are all that the user changes: then one epsilon
        holds, instead of one for each merchant.
        """
        if self.settings.group != "user":
            return
        for_each = "or set privacy.group = 'group', whose epsilon is for each merchant apart"
        if experiment.data.clients == "elsewhere":
            raise ConfigError(
                "privacy.group = 'user' needs users who are at one merchant, and a site cannot see who is at another "
                "(data.clients = 'elsewhere'): set privacy.group = 'group', whose epsilon is for each merchant apart"
            )
        if not data.independent_users:
            raise ConfigError(
                f"privacy.group = 'user': in dataset {experiment.data.dataset!r}, as configured, a user may be at "
                "several merchants or change examples of others. For next-basket set "
                f"data.options.independent_customers, valid_from and test_from, {for_each}"
            )
        for key, unset, why in (
            ("client_labels", 1.0, "which are labelled is drawn from all of a merchant's"),
            ("max_examples", None, "which are kept is drawn from all of a merchant's"),
            ("clicks", ClicksConfig(), "clicks are drawn for all of a merchant's examples together"),
            ("proxy_from", "public", "a catalogue has the titles that users bought"),
        ):
            if getattr(experiment.data, key) != unset:
                raise ConfigError(
                    f"privacy.group = 'user' does not allow data.{key}, by which a user changes examples of others "
                    f"({why}): remove it, {for_each}"
                )
        most = merchants_of_a_group(data, "group")
        if most > 1:
            raise ConfigError(
                f"privacy.group = 'user': dataset {experiment.data.dataset!r} has one user at {most} merchants, "
                f"although it declares independent users: correct the dataset, {for_each}"
            )

    def group(self) -> str | None:
        """Return a description of a group."""
        return GROUPS[self.settings.group]

    def about_groups(self, group: str | None, largest: int | None, merchants: int | None = None) -> list[str]:
        """Return sentences about the size of a group, and about groups at several merchants."""
        size = "unknown here, because sites do not send it" if largest is None else f"at most {largest:,}"
        found = [f"The unit is a group, {group}: the number of examples per group is {size}."]
        if group == GROUPS["user"]:
            return found
        if merchants is None:
            return [
                *found,
                "ε is for each merchant apart, and whether a group is at several is unknown here: for a group at k "
                "merchants the bound is the sum of their k epsilons, and of their deltas (basic composition).",
            ]
        if merchants > 1:
            found.append(
                f"ε is for each merchant apart, and one group is at up to {merchants:,} merchants: for such a group "
                f"the bound is the sum of {merchants:,} epsilons, and of as many deltas (basic composition)."
            )
        return found


_OF_USERS = Words(
    hides="everything of any one user, whose examples are all at one merchant",
    trusted=TRUSTED,
    title="A user",
    promise="An observer of everything that all merchants send, in all rounds, with any other knowledge, can hardly "
    "tell whether the data of any one user were used.",
    counts="a merchant's users with training examples",
    assumption="Each user is at one merchant, which does not depend on other users, and changes no other user's "
    "examples. In a private step each user of a merchant is sampled independently (Poisson sampling) with all of the "
    "user's examples, and their gradient is clipped before noise is added. Two data sets are neighbours if one user is "
    "added or removed. Which merchants take part, and their days of training, are public.",
)
