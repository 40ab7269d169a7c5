"""Unit ``example``: protects one labelled example, by DP-SGD at the merchant."""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.mechanisms.at_merchants import TRUSTED, AtMerchants
from fed_distill.mechanisms.base import Words
from fed_distill.privacy.exposure import MOVED_BY


@dataclass(frozen=True)
class ByExample(AtMerchants):
    """DP-SGD with examples as members."""

    moved_by: ClassVar[float] = MOVED_BY["example"]

    @property
    def words(self) -> Words:
        """The guarantee for an example."""
        return Words(
            hides="any one example of a merchant, added or removed",
            trusted=TRUSTED,
            title="One example of a merchant",
            promise="An observer of everything that a merchant sends, in all rounds, with any other knowledge, can "
            "hardly tell whether any one example of that merchant was used.",
            counts="a merchant's training examples",
            assumption="In a private step each example of a merchant is sampled independently (Poisson sampling), and "
            "its gradient is clipped before noise is added. Two data sets are neighbours if one example of one "
            "merchant is added or removed.",
        )

    def about_groups(self, group: str | None, largest: int | None, merchants: int | None = None) -> list[str]:
        """Return how much weaker the guarantee is for a group of examples."""
        if largest is None:
            return [
                "The unit is one example. The sizes of groups of examples, such as one offer, are unknown here because "
                "sites do not send them: for a group of k examples ε can be k times as large, at a larger δ."
            ]
        if largest == 1:
            return ["The unit is one example, and no two examples of a merchant share a group, such as one offer."]
        return [
            f"The unit is one example, and up to {largest:,} examples of a merchant share a group, such as one offer: "
            f"for such a group ε can be up to {largest:,} times as large, at a larger δ. privacy.unit = 'group' "
            "protects whole groups."
        ]
