"""Runs the trials of a tuning, each in a process of its own, and stops those whose rounds show that they are hopeless.

The base itself is run first: what it scores is what tuning must beat. Trials that try the same are run once, as the
cells of a study are, and a tuning that was stopped at any instant goes on by the same command.
"""

from collections import deque
from dataclasses import dataclass, field
from multiprocessing import connection

import optuna

from fed_distill.errors import ConfigError, TrainingError
from fed_distill.reporting.store import read_summary
from fed_distill.reporting.wording import METRIC_NAMES, number
from fed_distill.sweeps.cells import Cell, fingerprint_of
from fed_distill.sweeps.process import CellProcess, Work
from fed_distill.sweeps.progress import StudyProgress
from fed_distill.sweeps.runner import LOCK, Places, Resources, how_it_ended, locked, placed
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trials import State, Trials, best_of

DATABASE = "trials.db"


@dataclass
class _Running:
    """A trial in work, or the base, which is none. stopped: after how many rounds it was ended as hopeless."""

    cell: Cell
    process: CellProcess
    trial: optuna.Trial | None = None
    stopped: int = 0


@dataclass
class Tuner:
    """Runs ``tuning`` into ``places``. simulate: import path of what runs an experiment, as in ``process.Work``.

    Trials that run at the same time do not learn from each other: with one process the same file always finds the same.
    """

    tuning: Tuning
    places: Places
    simulate: str
    resources: Resources
    progress: StudyProgress
    _running: list[_Running] = field(default_factory=list)
    _best: float | None = None
    _objective: str = ""

    def run(self) -> None:
        """Run what is left of the trials.

        ConfigError if the base cannot be run, CheckpointError if another process runs the tuning, or another one is
        kept there. Whatever ends this call ends the processes that it started.
        """
        self.places.cells.mkdir(parents=True, exist_ok=True)
        with locked(self.places.folder / LOCK):
            trials = Trials(self.places.folder / DATABASE, self.tuning)
            base, ended = base_cell(self.tuning), trials.ended()
            finished = len(ended) + self.places.is_finished(base.fingerprint)
            self.progress.on_begin(trials.planned + 1, finished, self.resources.processes)
            try:
                self._run_base(base)
                best = best_of(ended)
                self._best = best.score if best is not None else None
                self._run_trials(trials)
            finally:
                self._end()

    def _run_base(self, cell: Cell) -> None:
        """Run the base alone: a teacher that trials share is cached then, and known by what the task is judged."""
        self.places.check(cell)
        if not self.places.is_finished(cell.fingerprint):
            self._start(cell)
            while not self._wait():
                self._hear(self._running[0])
            failure = self._leave(self._running[0])
            if failure is not None:
                self.progress.on_finish(cell, failure)
                raise ConfigError(f"the base cannot be run: {failure}")
            self._objective, score = scored(self.tuning, self.places, cell)
            self.progress.on_finish(cell, None, f"· {self._written(score)}")
        self._objective, score = scored(self.tuning, self.places, cell)
        if score is None:
            raise ConfigError(f"the base has no {self._objective} on its validation set: choose another objective")

    def _run_trials(self, trials: Trials) -> None:
        waiting = deque(trials.unfinished())
        while True:
            while len(self._running) < self.resources.processes and (waiting or trials.left()):
                trial = waiting.popleft() if waiting else trials.new()
                if not self._begin(trials, trial):
                    waiting.append(trial)
                    break
            if not self._running:
                return
            ended = self._wait()
            for one in list(self._running):
                self._hear(one, trials)
                if one in ended:
                    self._finish(trials, one)

    def _begin(self, trials: Trials, trial: optuna.Trial) -> bool:
        """Start a trial; False if it must wait for one that tries the same just now.

        What has been run before is not run again, and what cannot be run fails at once.
        """
        choices = self.tuning.chosen(trials.parameters(trial))
        labels = {"trial": str(trial.number), **{name: choice.label for name, choice in choices.items()}}
        try:
            experiment = self.tuning.experiment(choices)
        except ConfigError as error:
            self._tell(trials, trial, Cell(labels, 0, self.tuning.start, ""), "failed", reason=str(error))
            return True
        cell = Cell(labels, experiment.seed, experiment, fingerprint_of(experiment))
        if any(one.cell.fingerprint == cell.fingerprint for one in self._running):
            return False
        self.places.check(cell)
        if self.places.is_finished(cell.fingerprint):
            self.progress.on_start(cell, True)
            self._conclude(trials, trial, cell)
        else:
            self._start(cell, trial)
        return True

    def _start(self, cell: Cell, trial: optuna.Trial | None = None) -> None:
        name = cell.fingerprint
        again = self.places.run(name).exists()
        experiment = placed(cell, self.places, self.resources.threads, again)
        work = Work(experiment.to_toml(), self.simulate)
        process = CellProcess.start(work, self.places.log(name), f"trial {name}")
        self._running.append(_Running(cell, process, trial))
        self.progress.on_start(cell, again)

    def _wait(self) -> list[_Running]:
        """Wait until a process says something or ends; returns those that have ended."""
        ready = connection.wait([source for one in self._running for source in one.process.sources])
        return [one for one in self._running if one.process.sentinel in ready]

    def _hear(self, one: _Running, trials: Trials | None = None) -> None:
        """Show what a process says, and end its trial if its rounds show that it is hopeless."""
        for event in one.process.events():
            for what in (event[key] for key in ("stage", "round") if key in event):
                self.progress.on_event(one.cell, what)
            value = (event.get("valid") or {}).get(self._objective)
            if trials is None or one.trial is None or one.stopped or value is None:
                continue
            if event["seed"] not in (None, one.cell.experiment.seed):
                continue  # trials are compared on their first seed, which all of them have
            if trials.is_hopeless(one.trial, event["number"], value):
                one.stopped = event["number"]
                one.process.end()

    def _finish(self, trials: Trials, one: _Running) -> None:
        """Take leave of a trial that has ended, and note how."""
        assert one.trial is not None
        failure, diverged = self._leave(one), one.process.error == TrainingError.__name__
        if failure is None:
            self._conclude(trials, one.trial, one.cell)
        elif one.stopped:
            reason = f"after round {one.stopped} its best validation was below the median of the others"
            self._tell(trials, one.trial, one.cell, "stopped", reason=reason)
        else:  # settings with which training diverges are bad ones, which the sampler shall learn
            self._tell(trials, one.trial, one.cell, "stopped" if diverged else "failed", reason=failure)

    def _leave(self, one: _Running) -> str | None:
        """Wait for a process's end; returns why it left no result."""
        self._hear(one)
        code = one.process.leave()
        self._running.remove(one)
        name = one.cell.fingerprint
        if self.places.is_finished(name):
            return None
        return one.process.failure or how_it_ended(code, self.places.log(name))

    def _conclude(self, trials: Trials, trial: optuna.Trial, cell: Cell) -> None:
        """Note the score of a finished run."""
        _, score = scored(self.tuning, self.places, cell)
        if score is None:
            self._tell(trials, trial, cell, "failed", reason=f"its validation set gives no {self._objective}")
        else:
            self._tell(trials, trial, cell, "complete", score)

    def _tell(
        self,
        trials: Trials,
        trial: optuna.Trial,
        cell: Cell,
        state: State,
        score: float | None = None,
        reason: str = "",
    ) -> None:
        trials.end(trial, state, cell.fingerprint, score, reason)
        if score is not None:
            best = self._best is None or score > self._best
            self._best = score if best else self._best
            found = f"· {self._written(score)}{', the best so far,' if best else ''}"
            self.progress.on_finish(cell, None, found)
        else:
            self.progress.on_finish(cell, None if state == "stopped" else reason, f"· stopped: {reason};")

    def _written(self, score: float | None) -> str:
        return f"{METRIC_NAMES.get(self._objective, self._objective)} {number(score)}"

    def _end(self) -> None:
        """End at once what still runs: it goes on by the same command."""
        for one in self._running:
            one.process.end()
        for one in self._running:
            one.process.leave()
        self._running.clear()


def base_cell(tuning: Tuning) -> Cell:
    """The base as it is, as a cell to run."""
    return Cell({"trial": "base"}, tuning.start.seed, tuning.start, fingerprint_of(tuning.start))


def scored(tuning: Tuning, places: Places, cell: Cell) -> tuple[str, float | None]:
    """What a finished run is judged by, and its mean over the seeds, on the validation set."""
    summary = read_summary(places.run(cell.fingerprint))
    objective = tuning.objective or summary["headline"]
    validation = summary["federations"][summary["federation"]]["validation"] or {}
    return objective, validation.get(objective)
