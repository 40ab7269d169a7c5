"""Which merchants go to which site of a simulation: so spread that no site has much more to train than another.

Longest first to the site with least so far (Graham, "Bounds on multiprocessing timing anomalies", 1969): the fullest
site has at most 4/3 of what the best spread would give it.
"""

import heapq
from collections.abc import Mapping


def assign_merchants(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Names in ``parts`` lists, each sorted, balanced by the sum of ``sizes``; the same for the same sizes."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, part = heapq.heappop(loads)
        lists[part].append(name)
        heapq.heappush(loads, (load + sizes[name], part))
    return [sorted(names) for names in lists]
