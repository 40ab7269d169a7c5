"""The findings of a tuning: the best settings as an experiment, a table of all trials, and figures.

The inputs are Optuna's file and the runs' summaries, so that it can be written at any time. There are no test scores in
it, because trials have no test examples (``trial.trial_of``): a run of ``best.toml`` has them.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_distill.errors import CheckpointError
from fed_distill.reporting.charts import write_figure
from fed_distill.reporting.spreadsheets import as_cell
from fed_distill.reporting.wording import METRIC_NAMES, UNKNOWN, number
from fed_distill.storage.files import strict_json, write_atomic
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.space import Tuning
from fed_distill.sweeps.trial_sampler import DATABASE, base_cell, scored
from fed_distill.sweeps.trials import Trials, Tried, best_of
from fed_distill.sweeps.tune_figures import history_figure, importance_figure, settings_figure

BEST, TRIALS, SUMMARY, TOML, FIGURES = "best.toml", "trials.csv", "summary.json", "tuning.toml", "figures"


@dataclass(frozen=True)
class TuningFindings:
    """The findings. base: score of the unchanged base. best: None without complete trials."""

    objective: str
    base: float
    best: Tried | None
    tried: Sequence[Tried]
    importance: Mapping[str, float]
    toml: Path

    def lines(self) -> list[list[str]]:
        """Return header, base and complete trials in order of decreasing score, as text."""
        metric = METRIC_NAMES.get(self.objective, self.objective)
        searched = list(self.tried[0].parameters) if self.tried else []
        complete = sorted(
            (one for one in self.tried if one.state == "complete" and one.score is not None),
            key=lambda one: (-(one.score or 0.0), one.number),
        )
        return [
            ["trial", *searched, metric],
            *([str(one.number), *map(_shown, one.parameters.values()), number(one.score)] for one in complete),
            ["base", *[UNKNOWN] * len(searched), number(self.base)],
        ]


def write_findings(tuning: Tuning, places: Places) -> TuningFindings:
    """Write ``best.toml``, ``trials.csv``, ``summary.json``, ``tuning.toml`` and ``figures/``.

    :raises CheckpointError: the base has not been run, or a summary is damaged
    """
    base = base_cell(tuning)
    if not places.is_finished(base.fingerprint):
        raise CheckpointError(f"{places.folder} has no finished run of the base yet: run the tuning first")
    objective, score = scored(tuning, places, base)
    trials = Trials(places.folder / DATABASE, tuning)
    tried, importance = trials.ended(), trials.importance()
    best = best_of(tried)
    found = TuningFindings(objective, score or 0.0, best, tried, importance, places.folder / BEST)
    write_atomic(places.folder / TOML, tuning.to_toml())
    write_atomic(places.folder / TRIALS, _table(tuning, tried))
    write_atomic(places.folder / SUMMARY, strict_json(_summary(tuning, found), SUMMARY, indent=2) + "\n")
    if best is not None:
        write_atomic(found.toml, f"{_header(tuning, found)}{tuning.best(tuning.chosen(best.parameters)).to_toml()}")
    _draw(tuning, found, places.folder / FIGURES)
    return found


def _draw(tuning: Tuning, found: TuningFindings, folder: Path) -> None:
    metric = METRIC_NAMES.get(found.objective, found.objective)
    if any(one.score is not None for one in found.tried):
        figure = history_figure(found.tried, found.base, metric)
        write_figure(figure, folder, "history", f"{metric} of each trial and the best so far")
        figure = settings_figure(tuning, found.tried, found.base, metric)
        write_figure(figure, folder, "settings", f"{metric} of each trial by what it tried")
    if found.importance:
        write_figure(importance_figure(found.importance, metric), folder, "importance", "Importance of each setting")


def _table(tuning: Tuning, tried: Sequence[Tried]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", *tuning.names, "score", "reason", "cell"])
    for one in tried:
        values = [one.parameters.get(name, "") for name in tuning.names]
        score = "" if one.score is None else one.score
        writer.writerow(map(as_cell, [one.number, one.state, *values, score, one.reason, one.cell]))
    return text.getvalue()


def _summary(tuning: Tuning, found: TuningFindings) -> dict[str, Any]:
    best = found.best
    return {
        "schema": 1,
        "name": tuning.name,
        "objective": found.objective,
        "seeds": tuning.seeds,
        "trials": {
            state: sum(one.state == state for one in found.tried) for state in ("complete", "stopped", "failed")
        },
        "base": {"validation": found.base},
        "best": None
        if best is None
        else {
            "trial": best.number,
            "settings": best.parameters,
            "validation": best.score,
        },
        "importance": dict(found.importance),
    }


def _header(tuning: Tuning, found: TuningFindings) -> str:
    assert found.best is not None
    metric = METRIC_NAMES.get(found.objective, found.objective)
    return (
        f"# Trial {found.best.number} of the tuning {tuning.name}: {metric} {number(found.best.score)} on the "
        f"validation set, where the base has {number(found.base)}.\n"
    )


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
