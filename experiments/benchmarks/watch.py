"""What a process and all that it started use, watched from outside so that the watching takes none of its time.

Memory is the sum of proportional set sizes over the tree: a page that n processes share counts 1/n for each of them.
The cores that others use meanwhile say whether a timing is worth anything on a machine that is not one's own. Both are
read from Linux's ``/proc``; elsewhere nothing is measured, and the table says so.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """At ``time.monotonic() == at``: bytes and CPU seconds of the tree, and all CPU seconds of the machine."""

    at: float
    memory: int
    tree_seconds: float
    machine_seconds: float


def sample(root: int) -> Sample | None:
    """Look at process ``root`` and its descendants; None where there is no ``/proc``, or ``root`` has ended."""
    processes: dict[int, list[str]] = {}
    for entry in _PROC.glob("[0-9]*/stat"):
        try:
            processes[int(entry.parent.name)] = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
    if root not in processes:
        return None
    parents = {process: int(fields[1]) for process, fields in processes.items()}
    tree = {process: fields for process, fields in processes.items() if _descends(process, root, parents)}
    used = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return Sample(
        time.monotonic(),
        sum(_memory(process) for process in tree),
        sum(int(ticks) for fields in tree.values() for ticks in fields[11:15]) / _TICKS,
        sum(int(ticks) for position, ticks in enumerate(used[:8]) if position not in (3, 4)) / _TICKS,
    )


def _memory(process: int) -> int:
    """Proportional set size of a process in bytes; 0 if it has ended."""
    try:
        rollup = (_PROC / str(process) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * int(rollup.partition("\nPss:")[2].split()[0]) if "\nPss:" in rollup else 0


class Watch:
    """Samples a process tree in a thread until it is closed."""

    def __init__(self, root: int, interval: float = 0.25) -> None:
        self._root, self._interval = root, interval
        self._closed = threading.Event()
        self._samples: list[Sample] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self, until: float) -> int | None:
        """Most bytes seen up to ``until`` (of ``time.monotonic``); None if nothing was seen."""
        return max((seen.memory for seen in self._samples if seen.at <= until), default=None)

    def others(self, start: float, end: float) -> float | None:
        """Cores that other processes used between two times, on average; None if hardly anything was seen.

        It is what the whole machine used less what the tree did, never below zero.
        """
        seen = [each for each in self._samples if start <= each.at <= end]
        if len(seen) < 2:
            return None
        first, last = seen[0], seen[-1]
        others = (last.machine_seconds - first.machine_seconds) - (last.tree_seconds - first.tree_seconds)
        return max(0.0, others / (last.at - first.at))

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            seen = sample(self._root)
            if seen is not None:
                self._samples.append(seen)


def _descends(process: int, root: int, parents: dict[int, int]) -> bool:
    while process and process != root:
        process = parents.get(process, 0)
    return process == root
