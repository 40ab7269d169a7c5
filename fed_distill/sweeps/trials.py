"""The trials of a tuning, stored as an Optuna study in one SQLite file.

Each trial has its own seeded sampler, so that an interrupted tuning continues as if it had not been interrupted. The
sampler is the tree-structured Parzen estimator (Bergstra et al. 2011) in its multivariate form (Falkner et al. 2018).
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fed_distill import seeds
from fed_distill.errors import CheckpointError
from fed_distill.sweeps.space import Tuning

IDENTITY, CELL, REASON = "identity", "cell", "reason"
"""Names of our own attributes of the study and its trials."""
State = Literal["complete", "stopped", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Tried:
    """A finished trial.

    parameters: settings by name of the search. score: the objective of a complete trial, or the last validation of a
    pruned one, if any. reason: why it failed or was pruned. cell: name of its run.
    """

    number: int
    state: State
    parameters: dict[str, Any]
    score: float | None
    reason: str
    cell: str


class Trials:
    """The trials of ``tuning`` in the file ``path``; raises CheckpointError if they are those of another tuning."""

    def __init__(self, path: Path, tuning: Tuning) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._tuning = tuning
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name=tuning.name,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(tuning),
            )
        except SQLAlchemyError as error:
            raise CheckpointError(f"cannot read the trials in {path}: {str(error).splitlines()[0]}") from error
        self._samplers: dict[int, optuna.samplers.BaseSampler] = {}
        known = self._study.user_attrs.setdefault(IDENTITY, tuning.identity)
        if known != tuning.identity:
            raise CheckpointError(
                f"{path} has trials of another base or search space, which are not comparable: "
                "use another --out, or another name in the file"
            )
        self._study.set_user_attr(IDENTITY, tuning.identity)

    @property
    def planned(self) -> int:
        """Number of trials, including those not started."""
        return max(self._tuning.trials, len(self._study.get_trials(deepcopy=False)))

    def left(self) -> int:
        """Number of trials that have not been started."""
        return max(0, self._tuning.trials - len(self._study.get_trials(deepcopy=False)))

    def unfinished(self) -> Iterator[optuna.Trial]:
        """Yield the trials that were running when an earlier command ended; they continue with the same settings."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.sampler = self._sampler(trial.number)
            yield optuna.Trial(self._study, trial._trial_id)  # Optuna has no public way to resume a trial

    def new(self) -> optuna.Trial:
        """Return the next trial, with its own sampler seeded by its number."""
        self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        return self._study.ask()

    def parameters(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return the settings of the trial by name of the search; equal ones for a resumed trial."""
        self._study.sampler = self._sampler(trial.number)
        return {dimension.name: dimension.suggest(trial) for dimension in self._tuning.search}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of a trial, cached in this process."""
        if number not in self._samplers:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the multivariate form
                self._samplers[number] = optuna.samplers.TPESampler(
                    n_startup_trials=self._tuning.random_trials,
                    multivariate=True,
                    seed=seeds.derive(self._tuning.seed, "trial", number) % 2**32,
                )
        return self._samplers[number]

    def should_prune(self, trial: optuna.Trial, step: int, value: float) -> bool:
        """Record the validation after ``step`` rounds; return whether to prune the trial."""
        if step not in self._study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(value, step)
        return self._tuning.pruning and trial.should_prune()

    def end(self, trial: optuna.Trial, state: State, cell: str, score: float | None = None, reason: str = "") -> None:
        """Record how the trial ended; for the sampler a pruned trial is worse than all complete ones."""
        trial.set_user_attr(CELL, cell)
        trial.set_user_attr(REASON, reason)
        (found,) = (known for known, name in STATES.items() if name == state)
        self._study.tell(trial.number, score if state == "complete" else None, state=found)

    def ended(self) -> list[Tried]:
        """Return all finished trials, in order."""
        return [_tried(one) for one in self._study.get_trials(deepcopy=False, states=tuple(STATES))]

    def importance(self) -> dict[str, float]:
        """Return the share of the scores' variance that each search explains, largest first, over complete trials.

        By functional ANOVA with a random forest (Hutter et al. 2014); empty if there are too few trials.
        """
        scores = [one.value for one in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        if len(set(scores)) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self._tuning.seed)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def best_of(tried: Iterable[Tried]) -> Tried | None:
    """Return the complete trial with the highest score, the first of ties; None if none is complete."""
    complete = [one for one in tried if one.state == "complete" and one.score is not None]
    return max(complete, key=lambda one: (one.score, -one.number), default=None)


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    """Return the median stopping rule (Golovin et al. 2017, section 3.2)."""
    return optuna.pruners.MedianPruner(n_startup_trials=tuning.unpruned_trials, n_warmup_steps=tuning.warmup_rounds + 1)


def _tried(trial: FrozenTrial) -> Tried:
    attributes = trial.user_attrs
    return Tried(
        trial.number,
        STATES[trial.state],
        trial.params,
        trial.value,
        attributes.get(REASON, ""),
        attributes.get(CELL, ""),
    )
