"""Runs the cells of a study side by side, each in a process of its own, as far as cores and memory go.

What is finished is not run again and what was stopped goes on where it was, so that a study that is killed at any
instant goes on by the same command. A cell that fails is noted with its reason, and the others go on; the next time it
is tried again.
"""

import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Protocol

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError
from fed_distill.reporting.store import EXPERIMENT, SUMMARY, check_same, read_summary
from fed_distill.storage.files import write_atomic
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.storage.merchant_store import drop_stores
from fed_distill.sweeps.cells import Cell, distinct
from fed_distill.sweeps.memory import available_memory, tree_memory
from fed_distill.sweeps.process import CellProcess, Work

CELLS, LOCK = "cells", ".lock"
LOOK_EVERY = 1.0
"""Seconds between two looks at the memory of running cells."""
TEACHER = "teacher"
"""How the titles of stages begin in which a run makes its teacher and what it needs of it."""
PROGRESS = "progress"


@dataclass(frozen=True)
class Places:
    """Where a study keeps its cells: run folders, what they printed, and why some failed, all by fingerprint."""

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
        """Whether the cell's run is finished and has stood the attacks that the study wants; CheckpointError if its
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


@dataclass(frozen=True)
class Resources:
    """processes: cells that run at the same time at most. threads: of each process of a cell."""

    processes: int
    threads: int

    @classmethod
    def of(cls, base: Experiment, cores: int, processes: int | None = None, gpu: bool = False) -> "Resources":
        """As many cells as fill the cores by the base's ``runtime.workers`` and ``threads``, one core a thread.

        processes: if given, that many, with the cores dealt to them. gpu: students are trained on a GPU, which one
        cell fills, so that one runs at a time unless ``processes`` says otherwise.
        """
        runtime = base.runtime
        if processes is None:
            processes = 1 if gpu else max(1, cores // ((runtime.threads or 1) * runtime.workers))
        return cls(processes, runtime.threads or max(1, cores // (processes * runtime.workers)))


class Follower(Protocol):
    """Who is told how a study goes on."""

    def on_begin(self, total: int, finished: int, processes: int) -> None:
        """``total`` distinct cells, of which ``finished`` were there already; ``processes`` run at a time at most."""

    def on_start(self, cell: Cell, again: bool) -> None:
        """A cell was started; ``again``: it goes on where an earlier process was stopped."""

    def on_event(self, cell: Cell, what: str) -> None:
        """A cell says what it is doing."""

    def on_finish(self, cell: Cell, failure: str | None) -> None:
        """A cell has ended, well if ``failure`` is None."""

    def on_wait(self, needed: int, available: int) -> None:
        """Nothing more is started for now: the next cell may need more bytes of memory than are there."""

    def close(self) -> None:
        """Always called last."""


@dataclass
class _Running:
    """A cell in work. past_teacher: others may read from the cache what it needed of its teacher."""

    cell: Cell
    process: CellProcess
    teacher: str
    past_teacher: bool = False
    now: int = 0


@dataclass
class Runner:
    """Runs cells into ``places``. simulate, attack: import paths of what runs and what attacks, as in ``process.Work``.

    At most ``resources.processes`` cells run at a time. Another one is started only if the memory that is available
    covers the largest peak that any cell of this study has shown so far, and what running cells may still grow to
    that peak; until a cell has got past its teacher no peak is known, and it runs alone. Memory of a GPU is not
    looked at. Of cells that share a teacher which is not cached yet, one makes it and the others wait.
    """

    places: Places
    simulate: str
    resources: Resources
    follower: Follower
    attack: str = ""
    peak: int = 0
    _running: list[_Running] = field(default_factory=list)
    _taught: set[str] = field(default_factory=set)

    def run(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Run what is not finished; returns fingerprint -> reason of the cells that failed.

        CheckpointError if another process runs the study, or a cell was run where a default was another. Whatever ends
        this call ends the cells that it started.
        """
        self.places.cells.mkdir(parents=True, exist_ok=True)
        everything = distinct(cells)
        for known in everything.values():
            self.places.check(known)
        pending = [cell for cell in everything.values() if not self.places.is_done(cell)]
        failures: dict[str, str] = {}
        with locked(self.places.folder / LOCK):
            self.follower.on_begin(len(everything), len(everything) - len(pending), self.resources.processes)
            try:
                while pending or self._running:
                    while (cell := self._next(pending)) is not None:
                        pending.remove(cell)
                        self._start(cell)
                    for ended in self._wait():
                        failure = self._finish(ended)
                        if failure is not None:
                            failures[ended.cell.fingerprint] = failure
            finally:
                self._end()
        return failures

    def _next(self, pending: Sequence[Cell]) -> Cell | None:
        """The first cell that may be started now."""
        if len(self._running) >= self.resources.processes:
            return None
        making = {one.teacher for one in self._running if not one.past_teacher} - self._taught
        free = next((cell for cell in pending if _teacher_of(cell) not in making), None)
        return free if free is not None and self._fits() else None

    def _fits(self) -> bool:
        if not self._running:
            return True
        available = available_memory()
        if available is None:
            return True
        if not self.peak:
            return False
        needed = self.peak + sum(max(0, self.peak - one.now) for one in self._running)
        if needed > available:
            self.follower.on_wait(needed, available)
        return needed <= available

    def _start(self, cell: Cell) -> None:
        name = cell.fingerprint
        again = self.places.run(name).exists()
        self.places.failure(name).unlink(missing_ok=True)
        experiment = placed(cell, self.places, self.resources.threads, again)
        simulate = None if self.places.is_finished(name) else self.simulate
        work = Work(experiment.to_toml(), simulate)
        if cell.attacks is not None:
            work = replace(work, attack=self.attack, shadows=cell.attacks.shadows, canaries=cell.attacks.canaries)
        process = CellProcess.start(work, self.places.log(name), f"cell {name}")
        self._running.append(_Running(cell, process, _teacher_of(cell)))
        self.follower.on_start(cell, again)

    def _wait(self) -> list[_Running]:
        """Hear what running cells say, look at their memory, and return those that have ended."""
        ready = connection.wait([source for one in self._running for source in one.process.sources], LOOK_EVERY)
        found = tree_memory(one.process.pid for one in self._running)
        for one in self._running:
            memory = found.get(one.process.pid)
            one.now = memory.now if memory is not None else 0
            if one.process.pipe in ready:
                self._hear(one)
            if memory is not None and one.past_teacher:
                self.peak = max(self.peak, memory.peak)
        return [one for one in self._running if one.process.sentinel in ready]

    def _hear(self, one: _Running) -> None:
        for event in one.process.events():
            if "stage" in event and not event["stage"].startswith(TEACHER):
                one.past_teacher = True
                self._taught.add(one.teacher)
            for what in (event[key] for key in ("stage", "round") if key in event):
                self.follower.on_event(one.cell, what)

    def _finish(self, one: _Running) -> str | None:
        """Take leave of a cell that has ended; returns why it failed."""
        self._hear(one)
        code = one.process.leave()
        self._running.remove(one)
        name = one.cell.fingerprint
        failure = None
        if not self.places.is_done(one.cell):
            failure = one.process.failure or how_it_ended(code, self.places.log(name))
            write_atomic(self.places.failure(name), failure + "\n")
        else:
            self._taught.add(one.teacher)
            self.places.tidy(name)
        self.follower.on_finish(one.cell, failure)
        return failure

    def _end(self) -> None:
        """End at once what still runs: it goes on by the same command."""
        for one in self._running:
            one.process.end()
        for one in self._running:
            one.process.leave()
        self._running.clear()


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


def _teacher_of(cell: Cell) -> str:
    """The same for cells that need the same teacher."""
    experiment = cell.experiment
    return fingerprint(data=experiment.data.model_dump(mode="json"), teacher=experiment.teacher.model_dump(mode="json"))


def how_it_ended(code: int | None, log: Path) -> str:
    """Why a process left no result that said nothing of it itself."""
    if code is not None and code < 0:
        why = "; if memory ran out, lower --parallel" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{why}"
    return f"its process ended with exit code {code} and left no result; what it printed is in {log}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a study for this process; the system lets go of it when the process ends, however it ends."""
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise CheckpointError(f"{path.parent} is being run by process {holder}: wait for it to end") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
