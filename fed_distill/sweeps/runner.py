"""Runs the cells that a sampler chooses side by side, each in a process of its own, as far as cores and memory go.

What is finished is not run again and what was stopped goes on where it was, so that a sweep that is killed at any
instant goes on by the same command. A cell that fails is told to the sampler with its reason, and the others go on.
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
"""Seconds between two looks at the memory of running cells."""
TEACHER = "teacher"
"""How the titles of stages begin in which a run makes its teacher and what it needs of it."""


@dataclass(frozen=True)
class Resources:
    """processes: cells that run at the same time at most. threads: of each process of a cell."""

    processes: int
    threads: int

    @classmethod
    def of(cls, base: Experiment, cores: int, processes: int | None = None, gpu: bool = False) -> "Resources":
        """As many cells as fill the cores by the base's ``runtime.threads``, one core a thread.

        processes: if given, that many, with the cores dealt to them. gpu: students are trained on a GPU, which one
        cell fills, so that one runs at a time unless ``processes`` says otherwise.
        """
        runtime = base.runtime
        if processes is None:
            processes = 1 if gpu else max(1, cores // (runtime.threads or 1))
        return cls(processes, runtime.threads or max(1, cores // processes))


class Follower(Protocol):
    """Who is told how a sweep goes on."""

    def on_begin(self, total: int, finished: int, processes: int) -> None:
        """``total`` distinct cells, of which ``finished`` were there already; ``processes`` run at a time at most."""

    def on_start(self, cell: Cell, again: bool) -> None:
        """A cell was started; ``again``: it goes on where an earlier process was stopped."""

    def on_event(self, cell: Cell, what: str) -> None:
        """A cell says what it is doing."""

    def on_finish(self, cell: Cell, failure: str | None, found: str = "") -> None:
        """A cell has ended, well if ``failure`` is None, and what was ``found``."""

    def on_wait(self, needed: int, available: int) -> None:
        """Nothing more is started for now: the next cell may need more bytes of memory than are there."""


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
    """Runs what ``sampler`` chooses into ``places``. simulate, attack: import paths of what runs and what attacks, as
    in ``process.Work``.

    At most ``resources.processes`` cells run at a time, and never two of one fingerprint. Another one is started only
    if the memory that is available covers the largest peak that any cell of this sweep has shown so far, and what
    running cells may still grow to that peak; until a cell has got past its teacher no peak is known, and it runs
    alone. Memory of a GPU is not looked at. Of cells that share a teacher which is not cached yet, one makes it and the
    others wait.
    """

    places: Places
    sampler: Sampler
    simulate: str
    resources: Resources
    follower: Follower
    attack: str = ""
    peak: int = 0
    _running: list[_Running] = field(default_factory=list)
    _taught: set[str] = field(default_factory=set)
    _held: Cell | None = None

    def run(self) -> None:
        """Run what is not finished.

        CheckpointError if another process runs the sweep, a cell was run where a default was another, or what is kept
        in the folder is another sweep's. Whatever ends this call ends the cells that it started.
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
        """The next cell, if it may be started now; one that waits for memory is held until it fits."""
        if len(self._running) >= self.resources.processes:
            return None
        if self._held is None:
            self._held = self.sampler.ask(self._is_free)
        if self._held is None or not self._fits():
            return None
        cell, self._held = self._held, None
        return cell

    def _is_free(self, cell: Cell) -> bool:
        """Whether no running cell is the same, or makes the teacher that it needs."""
        making = {one.teacher for one in self._running if not one.past_teacher} - self._taught
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
        """Start a cell, unless it is done already or cannot be run at all."""
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
            if self.sampler.hear(one.cell, event):
                one.process.end()

    def _finish(self, one: _Running) -> None:
        """Take leave of a cell that has ended."""
        self._hear(one)
        code = one.process.leave()
        self._running.remove(one)
        name = one.cell.fingerprint
        if self.places.is_done(one.cell):
            self._taught.add(one.teacher)
            self.places.tidy(name)
            self._tell(one.cell, Ending())
        else:
            failure = one.process.failure or how_it_ended(code, self.places.log(name))
            self._tell(one.cell, Ending(failure, one.process.error))

    def _tell(self, cell: Cell, ending: Ending) -> None:
        told = self.sampler.tell(cell, ending)
        self.follower.on_finish(cell, told.failure, told.found)

    def _end(self) -> None:
        """End at once what still runs: it goes on by the same command."""
        for one in self._running:
            one.process.end()
        for one in self._running:
            one.process.leave()
        self._running.clear()


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
