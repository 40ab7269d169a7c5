"""Groups of training examples at merchants: how large they are, and at how many merchants."""

from collections import Counter
from typing import Literal

import numpy as np

from fed_distill.data.examples import Examples, FederatedData, Task, members

GroupedBy = Literal["group", "text", "pair"]
"""What the examples of a group share: the number in ``groups``, the first text or the second text."""


def groupings(task: Task) -> tuple[GroupedBy, ...]:
    """Return by what examples of ``task`` can be grouped."""
    return ("group", "text", "pair") if task.pair else ("group", "text")


def largest_group(data: FederatedData, by: GroupedBy) -> int:
    """Return the size of the largest group of training examples (``members``) at one merchant; 0 without merchants."""
    tables = [merchant.train for merchant in data.merchants.values() if len(merchant.train)]
    return max((int(np.bincount(members(table, by)).max()) for table in tables), default=0)


def merchants_of_a_group(data: FederatedData, by: GroupedBy) -> int:
    """Return the maximum number of merchants that train on examples of one group; 0 without merchants.

    Each of them makes a release of its own, so that the releases about a group compose.
    """
    found = Counter(key for merchant in data.merchants.values() for key in _keys(merchant.train, by))
    return max(found.values(), default=0)


def _keys(examples: Examples, by: GroupedBy) -> set[int] | set[str]:
    if by == "group":
        return set(examples.groups.tolist())
    return set((examples.texts if by == "text" else examples.pairs) or ())
