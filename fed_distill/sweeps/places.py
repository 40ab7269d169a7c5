"""Folders of a sweep's runs, their state, and the lock that admits one process at a time."""

import fcntl
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError
from fed_distill.reporting.store import EXPERIMENT, SUMMARY, check_files, check_same, read_summary
from fed_distill.storage.fingerprint import named_files
from fed_distill.storage.merchant_store import drop_stores
from fed_distill.sweeps.cells import Cell

CELLS, LOCK = "cells", ".lock"
PROGRESS = "progress"
"""The callback that cells omit, because the sweep shows their progress."""


@dataclass(frozen=True)
class Places:
    """Folders of the cells of a sweep: runs, their output and reasons of failure, all by fingerprint."""

    folder: Path
    _fingerprints: Callable[[str], Mapping[str, str]] = field(
        default_factory=lambda: functools.cache(named_files), repr=False, compare=False
    )

    @property
    def cells(self) -> Path:
        """Folder of all runs."""
        return self.folder / CELLS

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.cells / name

    def log(self, name: str) -> Path:
        """Return the file with the cell's output of all attempts."""
        return self.cells / f"{name}.log"

    def failure(self, name: str) -> Path:
        """Return the file with the reason of the last failure; it does not exist after a success."""
        return self.cells / f"{name}.failed"

    def is_finished(self, name: str) -> bool:
        """Whether the run has its summary, which is written last."""
        return (self.run(name) / SUMMARY).exists()

    def check(self, cell: Cell) -> None:
        """Raise CheckpointError if the cell's folder contains another experiment, of a version with other defaults, or
        if a file that it names has changed since. Each file is read once."""
        folder = self.run(cell.fingerprint)
        if (folder / EXPERIMENT).exists():
            check_same(folder, cell.experiment.with_changes({"name": cell.fingerprint}))
            check_files(folder, self._fingerprints)

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's run and its attacks are finished; raise CheckpointError if its summary is damaged."""
        finished = self.is_finished(cell.fingerprint)
        if not finished or cell.attacks is None:
            return finished
        audit = read_summary(self.run(cell.fingerprint))["privacy"].get("audit") or {}
        wanted = {"shadows": cell.attacks.shadows, "canaries": cell.attacks.canaries}
        return audit.get("auc") is not None and audit.get("asked") == wanted

    def tidy(self, name: str) -> None:
        """Delete files that only an unfinished run needs, which are most of a cell with many merchants."""
        drop_stores(self.run(name) / "checkpoint")

    def reason(self, name: str) -> str | None:
        """Return why the cell failed, in one line; None if it did not."""
        path = self.failure(name)
        return path.read_text(encoding="utf-8").strip() if path.exists() else None


def placed(cell: Cell, places: Places, threads: int, again: bool) -> Experiment:
    """Return the cell's experiment with its folder; ``again`` resumes it, with the same result."""
    callbacks = [name for name in cell.experiment.runtime.callbacks if name != PROGRESS]
    return cell.experiment.with_changes(
        {
            "name": cell.fingerprint,
            "runtime.folder": str(places.cells),
            "runtime.measure_speed": False,
            "runtime.resume": again,
            "runtime.threads": threads,
            "runtime.callbacks": callbacks,
        }
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the sweep in ``folder``; the system releases the lock when the process ends.

    :raises CheckpointError: another process, named in the message, has the lock
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise CheckpointError(f"{folder} is being run by process {holder}: wait for it to end") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
