"""The trials of a study with a ``[tuning]`` table, planned before the first one is run, and what they choose.

The server is tuned first, because all rows start from its student; then rows and other controls. A trial differs from
the cells of its row in its seeds, in its drawn settings and in that it has no test examples (``trial.trial_of``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fed_distill.config import Experiment
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.reporting.store import read_summary
from fed_distill.sweeps.cells import (
    AS_IN_THE_FILE,
    Cell,
    Chosen,
    combinations_of,
    controls_of,
    experiment_of,
    fingerprint_of,
)
from fed_distill.sweeps.dimensions import drawn
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.row_tuning import TUNED_CONTROLS, RowTuning
from fed_distill.sweeps.trial import check_unprotected, trial_of, validation_score
from fed_distill.sweeps.trial_log import Logged, Row, TrialLog, check_equal
from fed_distill.sweeps.variation import resolved, value_of

DRAWS = 1000
"""Maximum number of draws for one more trial with settings that the row does not have yet."""
SERVER = Row("control", "server")


@dataclass(frozen=True)
class RowTrial:
    """A planned trial. number: from 0, which has the file's settings. changes: what it draws, empty for number 0.
    settings: the resulting values of all searched keys; None where an option is not set."""

    row: Row
    number: int
    changes: Mapping[str, Any]
    settings: Mapping[str, Any]
    cell: Cell


@dataclass(frozen=True)
class TuningPlan:
    """The trials of a study whose log is ``log``.

    tiny, kept: see ``cells.expand``; a tiny study has two trials of each row. labels: rows that are compared.
    """

    study: Study
    tuning: RowTuning
    log: TrialLog
    labels: Sequence[str]
    tiny: bool = False
    kept: Collection[str] = ()

    @property
    def trials(self) -> int:
        """Number of trials of each row."""
        return min(2, self.tuning.trials) if self.tiny and "tuning.trials" not in self.kept else self.tuning.trials

    @property
    def rows(self) -> list[Row]:
        """All rows: controls first."""
        controls = [Row("control", name) for name in TUNED_CONTROLS if name in self.tuning.controls]
        return [*controls, *(Row("row", label) for label in self.labels)]

    def stages(self) -> list[list[Row]]:
        """Return the rows that are tuned together: those of a stage depend on what was chosen in earlier ones."""
        return [stage for stage in ([SERVER] if SERVER in self.rows else [], self._after_the_server) if stage]

    @property
    def _after_the_server(self) -> list[Row]:
        return [row for row in self.rows if row != SERVER]

    def planned(self, stage: Sequence[Row]) -> list[RowTrial]:
        """Return the trials of a stage, of all rows in turn, so that no row is ahead of others by more than one.

        :raises CheckpointError: the server's trials, on which they depend, are not all finished
        :raises ConfigError: an experiment is invalid or private, or a space has too few distinct settings
        """
        server = AS_IN_THE_FILE
        if SERVER in self.rows and SERVER not in stage:
            server = Chosen(controls={SERVER.name: self._best([SERVER])[SERVER]})
        by_row = [self._trials(row, server) for row in stage]
        return [trials[number] for number in range(self.trials) for trials in by_row]

    def preview(self) -> list[RowTrial]:
        """Return the trials of all rows as they are if the server keeps the file's settings, to check them before the
        first one is run.

        :raises ConfigError: see ``planned``
        """
        return [trial for row in self.rows for trial in self._trials(row, AS_IN_THE_FILE)]

    def results(self) -> dict[Row, list[Logged]]:
        """Return each row's trials in order.

        :raises CheckpointError: a row has fewer trials than planned, or others
        """
        return {
            row: [logged for _, logged in tried] for stage in self.stages() for row, tried in self._tried(stage).items()
        }

    def chosen(self) -> Chosen:
        """Return the best settings of each row by their score on validation examples, the first of ties.

        :raises CheckpointError: a row has fewer trials than planned, or others, or none that has a score
        """
        best: dict[str, dict[str, Mapping[str, Any]]] = {"row": {}, "control": {}}
        for stage in self.stages():
            for row, changes in self._best(stage).items():
                best[row.kind][row.name] = changes
        return Chosen(self.tuning.axis, best["row"], best["control"])

    def counts(self) -> dict[Row, int]:
        """Return the number of logged trials of each row."""
        logged = {(one.row, one.cell) for one in self.log.read()}
        return {row: sum(one == row for one, _ in logged) for row in self.rows}

    @property
    def has_all_trials(self) -> bool:
        """Whether no row has fewer trials in the log than planned."""
        return all(count >= self.trials for count in self.counts().values())

    def _tried(self, stage: Sequence[Row]) -> dict[Row, list[tuple[RowTrial, Logged]]]:
        planned: dict[Row, list[RowTrial]] = {row: [] for row in stage}
        for trial in self.planned(stage):
            planned[trial.row].append(trial)
        check_equal({row: [one.cell.fingerprint for one in trials] for row, trials in planned.items()}, self.log)
        logged = {(one.row, one.cell): one for one in self.log.read()}
        found = {row: [(one, logged[row, one.cell.fingerprint]) for one in trials] for row, trials in planned.items()}
        for tried in found.values():
            for trial, line in tried:
                self._check_score(trial, line)
        return found

    def _check_score(self, trial: RowTrial, logged: Logged) -> None:
        """Raise CheckpointError if the log has another score than the trial's run, where that is still there."""
        places = Places(self.log.path.parent)
        if not places.is_finished(trial.cell.fingerprint):
            return
        summary = read_summary(places.run(trial.cell.fingerprint))
        metric, score = score_of(trial.row, summary, self.tuning.objective)
        if (metric, score) != (logged.metric, logged.score):
            raise CheckpointError(
                f"{self.log.path} has {logged.metric} = {logged.score} for trial {trial.number} of {trial.row}, and "
                f"its run has {metric} = {score}: restore a copy of the log or, if tuning.objective was changed, use "
                "another --out"
            )

    def _best(self, stage: Sequence[Row]) -> dict[Row, Mapping[str, Any]]:
        """Return the changes of the best trial of each row."""
        found: dict[Row, Mapping[str, Any]] = {}
        for row, tried in self._tried(stage).items():
            best = best_of([logged for _, logged in tried], self.log)
            found[row] = next(trial.changes for trial, logged in tried if logged == best)
        return found

    def _trials(self, row: Row, server: Chosen) -> list[RowTrial]:
        """Return the trials of a row, with settings that are all different."""
        own = self._trial(row, 0, {}, server)
        found, draw = [own], 0
        while len(found) < self.trials:
            for _ in range(DRAWS):
                draw += 1
                choices = drawn(self.tuning.space(*row), self.study.trial_seeds["seed"], draw)
                changes = {key: change for choice in choices.values() for key, change in choice.changes.items()}
                settings = {**own.settings, **self._resolved(row, own, changes)}
                if all(settings != one.settings for one in found):
                    found.append(self._trial(row, len(found), changes, server))
                    break
            else:
                raise ConfigError(
                    f"study {self.study.name}, tuning of {row}: its space has {len(found)} distinct settings, the "
                    f"file's included, for {self.trials} trials: add values, or lower tuning.trials"
                )
        return found

    def _resolved(self, row: Row, own: RowTrial, changes: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return resolved(own.cell.experiment, changes)
        except ConfigError as error:
            raise ConfigError(
                f"study {self.study.name}, tuning of {row}: {error}: set it in the row, or search values"
            ) from error

    def _trial(self, row: Row, number: int, changes: Mapping[str, Any], server: Chosen) -> RowTrial:
        build = self._control if row.kind == "control" else self._row
        cell = build(row, number, changes, server)
        check_unprotected(f"study {self.study.name}, tuning of {row}", cell.experiment)
        settings = {key: value_of(cell.experiment, key) for key in self.tuning.keys(*row)}
        return RowTrial(row, number, changes, settings, cell)

    def _row(self, row: Row, number: int, changes: Mapping[str, Any], server: Chosen) -> Cell:
        axis, seeds = self.tuning.axis, self.study.trial_seeds
        choices = next(one for one in combinations_of(self.study) if one[axis].label == row.name)
        chosen = Chosen(axis, {row.name: changes}, server.controls)
        experiment = trial_of(experiment_of(self.study, choices, seeds, self.kept if self.tiny else None, chosen), {})
        return self._cell({axis: row.name, "trial": str(number)}, experiment)

    def _control(self, row: Row, number: int, changes: Mapping[str, Any], server: Chosen) -> Cell:
        base = self.study.base.tiny(self.kept) if self.tiny else self.study.base
        alone_with = base.with_changes({"controls": [row.name]})
        choices = next(combinations_of(self.study))
        first = experiment_of(self.study, choices, {}, self.kept if self.tiny else None, AS_IN_THE_FILE)
        of_control = controls_of(alone_with, server.over(first, {}))
        chosen = Chosen(controls={row.name: changes})
        experiment = chosen.over_controls(chosen.over(of_control, {}))
        return self._cell(
            {"control": row.name, "trial": str(number)},
            trial_of(experiment, {**self.study.trial_seeds, "controls": of_control.controls}),
        )

    def _cell(self, labels: Mapping[str, str], experiment: Experiment) -> Cell:
        seeds = self.study.trial_seeds
        return Cell(labels, seeds["seed"], experiment, fingerprint_of(experiment), data_seed=seeds["data.seed"])


def plan_of(
    study: Study, cells: Sequence[Cell], places: Places, tiny: bool = False, kept: Collection[str] = ()
) -> TuningPlan | None:
    """Return the plan of a study for the rows of ``cells``; None without a ``[tuning]`` table."""
    if study.tuning is None:
        return None
    axis = study.tuning.axis
    labels = list(dict.fromkeys(cell.labels[axis] for cell in cells if cell.labels))
    return TuningPlan(study, study.tuning, TrialLog(places.folder), labels, tiny, kept)


def score_of(row: Row, summary: Mapping[str, Any], objective: str | None) -> tuple[str, float | None]:
    """Return the objective of a trial of ``row`` and its score on validation examples; None if unknown."""
    control = row.name if row.kind == "control" and row.name != "fedavg" else None  # that is its run's federation
    return validation_score(summary, objective, control)


def best_of(trials: Sequence[Logged], log: TrialLog) -> Logged:
    """Return the trial with the highest score, the first of ties; raise CheckpointError if none has a score."""
    scored = [one for one in trials if one.score is not None]
    if not scored:
        raise CheckpointError(
            f"{log.path}: training diverged in all {len(trials)} trials of {trials[0].row}: {trials[0].reason}"
        )
    return max(scored, key=lambda one: (one.score, -one.trial))
