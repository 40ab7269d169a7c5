"""Unit ``example``: hides one labelled pair of a merchant, by DP-SGD at the merchant."""

from dataclasses import dataclass
from typing import ClassVar

from fed_distill.mechanisms.at_merchants import TRUSTED, AtMerchants
from fed_distill.mechanisms.base import Words
from fed_distill.privacy.exposure import MOVED_BY


@dataclass(frozen=True)
class ByExample(AtMerchants):
    """DP-SGD whose members are examples."""

    moved_by: ClassVar[float] = MOVED_BY["example"]

    @property
    def words(self) -> Words:
        """What is promised to an example."""
        return Words(
            hides="any one example of a merchant, added or removed",
            trusted=TRUSTED,
            title="One example of a merchant",
            promise="Whoever sees all that a merchant sends, in all rounds, and knows everything else, can hardly tell "
            "whether any one example of that merchant was used.",
            counts="a merchant's training examples",
            assumption="In a private step each example of a merchant takes part by its own coin flip (Poisson "
            "sampling), and its gradient is clipped before noise is added. Two data sets are neighbours if one example "
            "of one merchant is added or removed.",
        )

    def about_groups(self, group: str | None, largest: int | None) -> list[str]:
        """How much weaker the promise is for a group of examples."""
        if largest is None:
            return [
                "The unit is one example. How many examples share a group, such as one offer, is not known here, since "
                "sites do not tell: for such a group ε can be so many times as large, at a larger δ."
            ]
        if largest == 1:
            return ["The unit is one example, and no two examples of a merchant share a group, such as one offer."]
        return [
            f"The unit is one example, and up to {largest:,} examples of a merchant share a group, such as one offer: "
            f"for such a group ε can be up to {largest:,} times as large, at a larger δ. privacy.unit = 'group' "
            "protects whole groups."
        ]
