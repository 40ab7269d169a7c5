"""Balanced assignment of merchants to the sites of a simulation.

Each merchant, the largest first, goes to the site with the smallest load so far (Graham, "Bounds on multiprocessing
timing anomalies", 1969): the maximum load is at most 4/3 of the optimum.
"""

import heapq
from collections.abc import Mapping


def assign_merchants(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Assign names to ``parts`` sorted lists, balanced by the sum of ``sizes``; deterministic."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, part = heapq.heappop(loads)
        lists[part].append(name)
        heapq.heappush(loads, (load + sizes[name], part))
    return [sorted(names) for names in lists]
