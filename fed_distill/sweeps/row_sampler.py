"""The sampler of a study's trials: a grid whose finished cells are scored on validation examples and logged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fed_distill.errors import CheckpointError, TrainingError
from fed_distill.reporting.store import read_summary
from fed_distill.reporting.wording import METRIC_NAMES, number
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.dimensions import Metric
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.row_trials import RowTrial, score_of
from fed_distill.sweeps.sampler import Ending, GridSampler
from fed_distill.sweeps.trial_log import Logged, TrialLog


class RowTrialSampler:
    """Runs each planned trial once; implements ``sampler.Sampler``.

    Diverged training is a result, the worst one, as it is for another try of the same settings; after any other failure
    the trial is repeated by the next command.
    """

    def __init__(self, trials: Sequence[RowTrial], places: Places, log: TrialLog, objective: Metric | None) -> None:
        self._trials, self._places, self._log, self._objective = trials, places, log, objective

    def begin(self) -> tuple[int, int]:
        """Log trials whose run ended without its line, when a process was killed between the two."""
        self._log.drop_torn_line()
        self._logged = {(one.row, one.cell) for one in self._log.read()}
        for cell in {one.cell.fingerprint: one.cell for one in self._trials}.values():
            self._places.check(cell)
            if self._places.is_finished(cell.fingerprint):
                self._record(cell)
        left = [one.cell for one in self._trials if (one.row, one.cell.fingerprint) not in self._logged]
        self._grid = GridSampler(left, self._places)
        to_run, _ = self._grid.begin()
        total = len({one.cell.fingerprint for one in self._trials})
        return total, total - to_run

    def ask(self, is_free: Callable[[Cell], bool]) -> Cell | None:
        """Return the first trial that may run."""
        return self._grid.ask(is_free)

    def report(self, cell: Cell, event: Mapping[str, Any]) -> bool:
        """Return False: each row needs all of its trials."""
        return False

    def tell(self, cell: Cell, ending: Ending) -> Ending:
        """Log the trial, or store why it failed."""
        if ending.failure is None:
            metric, score = self._record(cell)
            return Ending(found=f"· {METRIC_NAMES.get(metric, metric)} {number(score)} on validation examples")
        if ending.error == TrainingError.__name__:
            self._append(cell, self._objective or "", None, ending.failure, None)
            return Ending(found=f"· diverged: {ending.failure};")
        return self._grid.tell(cell, ending)

    def _record(self, cell: Cell) -> tuple[str, float]:
        summary = read_summary(self._places.run(cell.fingerprint))
        row = next(one.row for one in self._trials if one.cell.fingerprint == cell.fingerprint)
        metric, score = score_of(row, summary, self._objective)
        if score is None:
            raise CheckpointError(f"{cell.title}: its validation examples have no {metric}: choose another objective")
        self._append(cell, metric, score, "", float(summary["seconds"]))
        return metric, score

    def _append(self, cell: Cell, metric: str, score: float | None, reason: str, seconds: float | None) -> None:
        """Log the run for each row that has this trial and no line of it yet."""
        for one in self._trials:
            key = (one.row, one.cell.fingerprint)
            if one.cell.fingerprint == cell.fingerprint and key not in self._logged:
                self._logged.add(key)
                self._log.append(
                    Logged(*one.row, one.number, one.settings, metric, score, reason, seconds, cell.fingerprint)
                )
