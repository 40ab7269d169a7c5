"""Available memory and the memory of process trees, from Linux' ``/proc`` and control groups.

On other systems the functions return None, and only the number of processes limits a study.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Limits above this, in bytes, mean unlimited: control groups v1 contain the largest page count."""


@dataclass(frozen=True)
class Memory:
    """Current and peak memory of a process and its descendants in bytes; shared pages are counted repeatedly."""

    now: int
    peak: int


def available_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the memory available without swapping, of the machine or its container if that is less.

    :returns: bytes, or None if unknown
    """
    machine = _fields(proc / "meminfo").get("MemAvailable")
    if machine is None:
        return None
    return max(0, min([machine, *_group_allowances(proc, cgroups)]))


def tree_memory(roots: Iterable[int], proc: Path = PROC) -> dict[int, Memory]:
    """Return the memory of each process in ``roots`` (ids) with its descendants; finished processes are skipped.

    Empty if unknown.
    """
    tables = {int(path.parent.name): _fields(path) for path in proc.glob("[0-9]*/status")}
    children: dict[int, list[int]] = {}
    for process, table in tables.items():
        children.setdefault(table.get("PPid", 0), []).append(process)

    def total(process: int) -> Memory:
        now = tables[process].get("VmRSS", 0)
        parts = [Memory(now, tables[process].get("VmHWM", now)), *map(total, children.get(process, ()))]
        return Memory(sum(part.now for part in parts), sum(part.peak for part in parts))

    return {root: total(root) for root in roots if root in tables and "VmRSS" in tables[root]}


def _fields(path: Path) -> dict[str, int]:
    """Parse lines ``Name: 123`` and ``Name: 123 kB`` as numbers and bytes; empty if the file does not exist."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # a process may end at any time
        return {}
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if number.isdigit() and unit in ("", "kB"):
            found[name] = int(number) * (1024 if unit else 1)
    return found


def _group_allowances(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the remaining memory of each control group of this process and its ancestors."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _allowances(cgroups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            yield from _allowances(
                cgroups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )


def _allowances(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    inner = root / path.lstrip("/")
    for folder in (inner, *inner.parents):
        if not folder.is_relative_to(root):
            return
        most, taken = _number(folder / limit), _number(folder / usage)
        if most is not None and taken is not None and most < UNLIMITED:
            yield most - taken + _statistic(folder / "memory.stat", reclaimable)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
