"""How the settings of a study's rows were chosen: a table of all rows with equally many trials, and sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fed_distill.config import CONTROLS
from fed_distill.reporting.wording import METRIC_NAMES, ROW_NAMES, UNKNOWN, duration, number
from fed_distill.sweeps.row_trials import TuningPlan, best_of
from fed_distill.sweeps.trial_log import TRIALS, Logged


@dataclass(frozen=True)
class TuningAccount:
    """sentences: how it was tuned. table: header, then a line for each row: number of trials, the best one's settings,
    and the scores on validation examples of the file's settings and of the best ones. words: its first columns, which
    are no numbers."""

    sentences: Sequence[str]
    table: Sequence[Sequence[str]]
    words: ClassVar[int] = 3

    @classmethod
    def of(cls, plan: TuningPlan) -> "TuningAccount":
        """Read the log of a study.

        :raises CheckpointError: its rows do not have equally many trials, namely those that were planned
        """
        results = plan.results()
        metric = next((one.metric for trials in results.values() for one in trials if one.score is not None), "")
        shown = METRIC_NAMES.get(metric, metric)
        header = [plan.tuning.axis, "trials", "best settings", f"{shown}, file's settings", f"{shown}, best", "time"]
        lines = []
        for row, trials in results.items():
            best = best_of(trials, plan.log)
            seconds = [one.seconds for one in trials]
            lines.append(
                [
                    f"control: {ROW_NAMES[row.name]}" if row.kind == "control" else row.name,
                    str(len(trials)),
                    _settings(best, trials[0]),
                    UNKNOWN if trials[0].score is None else number(trials[0].score),
                    number(best.score),
                    duration(sum(one for one in seconds if one is not None)),
                ]
            )
        return cls(_sentences(plan), [header, *lines])


def _settings(best: Logged, file: Logged) -> str:
    """Return the values of all searched keys, and after those that differ from the file's, the file's."""
    short = {key: key.rpartition(".")[2] for key in file.settings}
    names = short if len(set(short.values())) == len(short) else {key: key for key in short}
    parts = []
    for key, value in best.settings.items():
        before = file.settings[key]
        parts.append(f"{names[key]} {_value(value)}" + ("" if value == before else f" (file: {_value(before)})"))
    return ("as in the file: " if best.trial == file.trial else "") + ", ".join(parts)


def _value(value: Any) -> str:
    return "not set" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _sentences(plan: TuningPlan) -> list[str]:
    study, tuning, seeds = plan.study, plan.tuning, plan.study.trial_seeds
    shared = tuning.keys("row", "")
    found = [
        f"Each row had {plan.trials} trials, the first with the file's own settings, the others drawn at random. "
        "The best one on validation examples has the settings of the row's cells. No trial has test examples. All "
        f"trials are in {TRIALS}.",
        *([f"Keys of all rows: {', '.join(shared)}."] if shared else []),
    ]
    own = [
        f"{label} {', '.join(key for key in tuning.keys('row', label) if key not in shared)}"
        for label in plan.labels
        if label in tuning.rows
    ]
    own += [f"control {name} {', '.join(tuning.keys('control', name))} only" for name in tuning.controls]
    if own:
        found.append(f"Keys of their own: {'; '.join(own)}.")
    found.append(_seeds(seeds["seed"], study.reported_seeds, "training seed", ""))
    found.append(
        _seeds(
            seeds["data.seed"],
            study.reported_data_seeds,
            "data seed",
            " Where data seeds split the same rows anew, validation examples of one may be test examples of another.",
        )
    )
    fixed = [ROW_NAMES[name] for name in CONTROLS if name in study.base.controls and name not in tuning.controls]
    if fixed:
        found.append(f"Without trials of their own: {', '.join(fixed)}.")
    return found


def _seeds(used: int, reported: Sequence[int], what: str, unless: str) -> str:
    if used not in reported:
        return f"The {what} of the trials, {used}, is none of the cells'.{unless}"
    shared = "the only one" if len(reported) == 1 else "one"
    return f"The {what} of the trials, {used}, is also {shared} of the cells'.{unless if len(reported) > 1 else ''}"
