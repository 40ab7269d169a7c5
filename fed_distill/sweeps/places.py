"""Where a sweep keeps its runs, what of them is done, and the lock that lets one process at a time work on them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError
from fed_distill.reporting.store import EXPERIMENT, SUMMARY, check_same, read_summary
from fed_distill.storage.merchant_store import drop_stores
from fed_distill.sweeps.cells import Cell

CELLS, LOCK = "cells", ".lock"
PROGRESS = "progress"
"""The callback that a cell goes without: the sweep shows how it goes on."""


@dataclass(frozen=True)
class Places:
    """Where a sweep keeps its cells: run folders, what they printed, and why some failed, all by fingerprint."""

    folder: Path

    @property
    def cells(self) -> Path:
        """Folder of all of them."""
        return self.folder / CELLS

    def run(self, name: str) -> Path:
        """Folder of the run."""
        return self.cells / name

    def log(self, name: str) -> Path:
        """What the cell printed, of all attempts."""
        return self.cells / f"{name}.log"

    def failure(self, name: str) -> Path:
        """Why the last attempt failed; there is no such file if it did not."""
        return self.cells / f"{name}.failed"

    def is_finished(self, name: str) -> bool:
        """Whether the run has its summary, which is written last."""
        return (self.run(name) / SUMMARY).exists()

    def check(self, cell: Cell) -> None:
        """CheckpointError if the cell's folder holds a run of another experiment: of a version with other defaults."""
        folder = self.run(cell.fingerprint)
        if (folder / EXPERIMENT).exists():
            check_same(folder, cell.experiment.with_changes({"name": cell.fingerprint}))

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell's run is finished and has stood the attacks that it is to stand; CheckpointError if its
        summary is torn."""
        finished = self.is_finished(cell.fingerprint)
        if not finished or cell.attacks is None:
            return finished
        audit = read_summary(self.run(cell.fingerprint))["privacy"].get("audit") or {}
        wanted = {"shadows": cell.attacks.shadows, "canaries": cell.attacks.canaries}
        return audit.get("auc") is not None and audit.get("asked") == wanted

    def tidy(self, name: str) -> None:
        """Drop what only a run that goes on needs, which is most of a cell where there are many merchants."""
        drop_stores(self.run(name) / "checkpoint")

    def reason(self, name: str) -> str | None:
        """Why the cell failed, in one line; None if it did not."""
        path = self.failure(name)
        return path.read_text(encoding="utf-8").strip() if path.exists() else None


def placed(cell: Cell, places: Places, threads: int, again: bool) -> Experiment:
    """The cell's experiment with its place, to be resumed if it is begun ``again``: the result stays the same."""
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
    """Hold the sweep in ``folder`` for this process; the system lets go of it when the process ends, however it ends.

    CheckpointError naming the process that holds it, if another one does.
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
