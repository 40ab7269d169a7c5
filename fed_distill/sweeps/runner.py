"""Run the cells of a sampler in parallel, each in its own process, within the limits of cores and memory.

Finished cells are skipped and interrupted ones are resumed, so that the same command continues a sweep that was killed.
If a cell fails, the sampler receives the reason and the others continue.
"""

import signal
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Protocol

from fed_distill.config import Experiment
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.memory import available_memory, tree_memory
from fed_distill.sweeps.places import Places, locked, placed
from fed_distill.sweeps.process import CellProcess, Work
from fed_distill.sweeps.sampler import Ending, Sampler

LOOK_EVERY = 1.0
"""Seconds between two measurements of the memory of running cells."""
TEACHER = "teacher"
"""Prefix of the titles of stages that train the teacher or compute its outputs."""


@dataclass(frozen=True)
class Resources:
    """processes: maximum number of concurrent cells. threads: per process of a cell."""

    processes: int
    threads: int

    @classmethod
    def of(cls, base: Experiment, cores: int, processes: int | None = None, gpu: bool = False) -> "Resources":
        """Return as many cells as fill the cores with the base's ``runtime.threads``, one core per thread.

        :param base: the base experiment
        :param cores: number of cores
        :param processes: number of concurrent cells, which share the cores; None to compute it
        :param gpu: students are trained on a GPU: one cell at a time unless ``processes`` is given
        """
        runtime = base.runtime
        if processes is None:
            processes = 1 if gpu else max(1, cores // (runtime.threads or 1))
        return cls(processes, runtime.threads or max(1, cores // processes))


class Follower(Protocol):
    """Observes the progress of a sweep."""

    def on_begin(self, total: int, finished: int, processes: int) -> None:
        """Receive the number of distinct cells, of finished ones, and of concurrent processes."""

    def on_start(self, cell: Cell, again: bool) -> None:
        """A cell was started; ``again``: it was resumed."""

    def on_event(self, cell: Cell, what: str) -> None:
        """A running cell reported its activity."""

    def on_finish(self, cell: Cell, failure: str | None, found: str = "") -> None:
        """A cell ended: with a ``failure``, or with what it ``found``."""

    def on_wait(self, needed: int, available: int) -> None:
        """No cell is started for now: the next one may need more bytes of memory than are available."""


@dataclass
class _Running:
    """A running cell. teacher_cached: its teacher is cached, so that other cells can use it."""

    cell: Cell
    process: CellProcess
    teacher: str
    teacher_cached: bool = False
    now: int = 0


@dataclass
class Runner:
    """Runs the cells that ``sampler`` selects into ``places``.

    simulate, attack: import paths, see ``process.Work``. At most ``resources.processes`` cells run concurrently, and
    never two with one fingerprint. Another cell is started only if the available memory covers the largest peak of any
    cell of this sweep, plus the expected growth of running cells to that peak. Before a first cell has passed its
    teacher, no peak is known and it runs alone. GPU memory is not checked. Of cells that share an uncached teacher, one
    trains it and the others wait.
    """

    places: Places
    sampler: Sampler
    simulate: str
    resources: Resources
    follower: Follower
    attack: str = ""
    peak: int = 0
    _running: list[_Running] = field(default_factory=list)
    _cached_teachers: set[str] = field(default_factory=set)
    _held: Cell | None = None

    def run(self) -> None:
        """Run all unfinished cells; stop the running ones if this call fails.

        :raises CheckpointError: another process runs the sweep, a cell was run with other defaults, or the folder
            belongs to another sweep
        """
        self.places.cells.mkdir(parents=True, exist_ok=True)
        with locked(self.places.folder):
            self.follower.on_begin(*self.sampler.begin(), self.resources.processes)
            try:
                while True:
                    while (cell := self._next()) is not None:
                        self._begin(cell)
                    if not self._running:
                        return
                    for ended in self._wait():
                        self._finish(ended)
            finally:
                self._end()

    def _next(self) -> Cell | None:
        """Return the next cell if it may start now; a cell that waits for memory is held until it fits."""
        if len(self._running) >= self.resources.processes:
            return None
        if self._held is None:
            self._held = self.sampler.ask(self._is_free)
        if self._held is None or not self._fits():
            return None
        cell, self._held = self._held, None
        return cell

    def _is_free(self, cell: Cell) -> bool:
        """Whether no running cell is equal, or trains the teacher that it needs."""
        making = {one.teacher for one in self._running if not one.teacher_cached} - self._cached_teachers
        running = {one.cell.fingerprint for one in self._running}
        return cell.fingerprint not in running and _teacher_of(cell) not in making

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

    def _begin(self, cell: Cell) -> None:
        """Start a cell, unless it is finished or cannot be run."""
        if cell.problem is None and not self.places.is_done(cell):
            self._start(cell)
        else:
            self.follower.on_start(cell, True)
            self._tell(cell, Ending(cell.problem))

    def _start(self, cell: Cell) -> None:
        name = cell.fingerprint
        again = self.places.run(name).exists()
        experiment = placed(cell, self.places, self.resources.threads, again)
        simulate = None if self.places.is_finished(name) else self.simulate
        work = Work(experiment.to_toml(), self.resources.threads, simulate)
        if cell.attacks is not None:
            work = replace(work, attack=self.attack, shadows=cell.attacks.shadows, canaries=cell.attacks.canaries)
        process = CellProcess.start(work, self.places.log(name), f"cell {name}")
        self._running.append(_Running(cell, process, _teacher_of(cell)))
        self.follower.on_start(cell, again)

    def _wait(self) -> list[_Running]:
        """Process events of running cells, measure their memory, and return those that have ended."""
        ready = connection.wait([source for one in self._running for source in one.process.sources], LOOK_EVERY)
        found = tree_memory(one.process.pid for one in self._running)
        for one in self._running:
            memory = found.get(one.process.pid)
            one.now = memory.now if memory is not None else 0
            if one.process.pipe in ready:
                self._receive(one)
            if memory is not None and one.teacher_cached:
                self.peak = max(self.peak, memory.peak)
        return [one for one in self._running if one.process.sentinel in ready]

    def _receive(self, one: _Running) -> None:
        for event in one.process.events():
            if "stage" in event and not event["stage"].startswith(TEACHER):
                one.teacher_cached = True
                self._cached_teachers.add(one.teacher)
            for what in (event[key] for key in ("stage", "round") if key in event):
                self.follower.on_event(one.cell, what)
            if self.sampler.report(one.cell, event):
                one.process.end()

    def _finish(self, one: _Running) -> None:
        """Handle a cell that has ended."""
        self._receive(one)
        code = one.process.leave()
        self._running.remove(one)
        name = one.cell.fingerprint
        if self.places.is_done(one.cell):
            self._cached_teachers.add(one.teacher)
            self.places.tidy(name)
            self._tell(one.cell, Ending())
        else:
            failure = one.process.failure or how_it_ended(code, self.places.log(name))
            self._tell(one.cell, Ending(failure, one.process.error))

    def _tell(self, cell: Cell, ending: Ending) -> None:
        told = self.sampler.tell(cell, ending)
        self.follower.on_finish(cell, told.failure, told.found)

    def _end(self) -> None:
        """Kill the running cells; the same command resumes them."""
        for one in self._running:
            one.process.end()
        for one in self._running:
            one.process.leave()
        self._running.clear()


def _teacher_of(cell: Cell) -> str:
    """Return a key that is equal for cells with the same teacher."""
    experiment = cell.experiment
    return fingerprint(data=experiment.data.model_dump(mode="json"), teacher=experiment.teacher.model_dump(mode="json"))


def how_it_ended(code: int | None, log: Path) -> str:
    """Return why a process ended without a result and without a reported reason."""
    if code is not None and code < 0:
        why = "; if memory ran out, lower --parallel" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{why}"
    return f"its process ended with exit code {code} and without a result; its output is in {log}"
