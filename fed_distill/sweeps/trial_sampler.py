"""Select the trials of a tuning with Optuna, score them on validation data, and prune unpromising ones.

The base is run first and alone, which caches the teacher shared by the trials and gives the score to beat. Trials with
equal settings are run once, like the cells of a study.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna

from fed_distill.errors import ConfigError, TrainingError
from fed_distill.reporting.store import read_summary
from fed_distill.reporting.wording import METRIC_NAMES, number
from fed_distill.sweeps.cells import Cell, fingerprint_of
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.sampler import Ending
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trial import validation_score
from fed_distill.sweeps.trials import State, Trials, best_of

DATABASE = "trials.db"


class TrialSampler:
    """The sampler of a tuning; implements ``sampler.Sampler``.

    Concurrent trials do not learn from each other: with one process, equal files always give equal results.
    """

    def __init__(self, tuning: Tuning, places: Places) -> None:
        self.tuning, self.places = tuning, places
        self._base = base_cell(tuning)
        self._asked: dict[str, optuna.Trial] = {}
        self._stopped: dict[str, int] = {}
        self._waiting: list[tuple[Cell, optuna.Trial]] = []
        self._best: float | None = None
        self._objective: str | None = None
        self._problem: str | None = None

    def begin(self) -> tuple[int, int]:
        """Open the trials; raise CheckpointError if they are those of another tuning."""
        self._trials = Trials(self.places.folder / DATABASE, self.tuning)
        ended = self._trials.ended()
        self._waiting = [(self._cell(trial), trial) for trial in self._trials.unfinished()]
        best = best_of(ended)
        self._best = best.score if best is not None else None
        return self._trials.planned + 1, len(ended) + self.places.is_finished(self._base.fingerprint)

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """Return the base until it is finished, then trials; raise ConfigError if the base cannot be run or scored."""
        if self._objective is None and not self._score_base():
            return self._base if is_free(self._base) else None
        if not self._waiting and self._trials.left():
            trial = self._trials.new()
            self._waiting.append((self._cell(trial), trial))
        found = next((one for one in self._waiting if is_free(one[0])), None)
        if found is None:
            return None
        self._waiting.remove(found)
        cell, trial = found
        self._asked[cell.fingerprint] = trial
        if cell.problem is None:
            self.places.check(cell)
        return cell

    def report(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """Return whether to prune the trial after this round."""
        trial, value = self._asked.get(cell.fingerprint), (event.get("valid") or {}).get(self._objective)
        if trial is None or value is None or cell.fingerprint in self._stopped:
            return False
        if event["seed"] not in (None, cell.experiment.seed):
            return False  # trials are compared on their first seed, which all of them have
        hopeless = self._trials.should_prune(trial, event["number"], value)
        if hopeless:
            self._stopped[cell.fingerprint] = event["number"]
        return hopeless

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Record a trial's score or failure; diverged training counts as a bad result, so that the sampler avoids its
        settings."""
        if cell is self._base:
            return self._tell_base(ending)
        trial, round = self._asked.pop(cell.fingerprint), self._stopped.pop(cell.fingerprint, None)
        if ending.failure is None:
            objective, score = scored(self.tuning, self.places, cell)
            if score is None:
                return self._end(trial, "failed", cell, f"its validation set has no {objective}")
            self._trials.end(trial, "complete", cell.fingerprint, score)
            best = self._best is None or score > self._best
            self._best = score if best else self._best
            return Ending(found=f"· {_written(objective, score)}{', the best so far,' if best else ''}")
        if round is not None:
            reason = f"after round {round} its best validation was below the median of the others"
            return self._end(trial, "stopped", cell, reason)
        return self._end(trial, "stopped" if ending.error == TrainingError.__name__ else "failed", cell, ending.failure)

    def _cell(self, trial: optuna.Trial) -> Cell:
        """Return the cell of a trial; its ``problem`` is set if the choices are incompatible."""
        choices = self.tuning.chosen(self._trials.parameters(trial))
        labels = {"trial": str(trial.number), **{name: choice.label for name, choice in choices.items()}}
        try:
            experiment = self.tuning.experiment(choices)
        except ConfigError as error:
            return Cell(labels, self.tuning.start.seed, self.tuning.start, f"trial {trial.number}", problem=str(error))
        return Cell(labels, experiment.seed, experiment, fingerprint_of(experiment))

    def _score_base(self) -> bool:
        """Return whether the base is finished; its summary then determines the objective."""
        if self._problem is not None:
            raise ConfigError(f"the base cannot be run: {self._problem}")
        self.places.check(self._base)
        if not self.places.is_finished(self._base.fingerprint):
            return False
        objective, score = scored(self.tuning, self.places, self._base)
        if score is None:
            raise ConfigError(f"the base has no {objective} on its validation set: choose another objective")
        self._objective = objective
        return True

    def _tell_base(self, ending: Ending) -> Ending:
        self._problem = ending.failure
        if ending.failure is not None:
            return ending
        return Ending(found=f"· {_written(*scored(self.tuning, self.places, self._base))}")

    def _end(self, trial: optuna.Trial, state: State, cell: Cell, reason: str) -> Ending:
        self._trials.end(trial, state, "" if cell.problem else cell.fingerprint, reason=reason)
        return Ending(found=f"· stopped: {reason};") if state == "stopped" else Ending(reason)


def base_cell(tuning: Tuning) -> Cell:
    """Return the unchanged base as a cell."""
    return Cell({"trial": "base"}, tuning.start.seed, tuning.start, fingerprint_of(tuning.start))


def scored(tuning: Tuning, places: Places, cell: Cell) -> tuple[str, float | None]:
    """Return the objective of a finished run and its mean over the seeds on the validation set."""
    return validation_score(read_summary(places.run(cell.fingerprint)), tuning.objective)


def _written(objective: str, score: float | None) -> str:
    return f"{METRIC_NAMES.get(objective, objective)} {number(score)}"
