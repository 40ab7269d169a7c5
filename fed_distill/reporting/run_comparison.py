"""Compare two finished runs: settings that differ, and scores side by side.

Headline scores are paired by unit of the test set (``Outcome.by_unit``) where both runs had the same one: with equal
settings of the data and equal training seeds.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fed_distill.config import Experiment
from fed_distill.errors import ConfigError
from fed_distill.evaluation.metrics import SCORES
from fed_distill.evaluation.statistics import Estimate, difference, estimate
from fed_distill.reporting.store import read_experiment, read_summary
from fed_distill.reporting.unit_scores import UnitScores, read_unit_scores
from fed_distill.reporting.wording import ROW_NAMES

_IGNORED = ("name", "runtime.")
"""Settings that are not compared: they do not change results."""
_OF_TRAINING = (
    *("proxy_size", "proxy_from", "proxy_neighbours", "proxy_choice", "proxy_dataset", "proxy_options"),
    *("public_labels", "client_labels", "clicks"),
)
"""Keys of ``[data]`` by which test data do not change; ``proxy_domains`` leaves domains out of the test data, too."""
_MORE = ("merchant_accuracy", "retention", "uplink_bytes", "downlink_bytes", "seconds")
"""Other figures of the main federations."""
_NEEDED = ("task", "seeds", "headline", "teacher", "controls", "federations", "federation")
"""Keys of a summary that are compared."""


@dataclass(frozen=True)
class ComparedScore:
    """One figure of both runs; ``difference`` is theirs minus ours, None if it cannot be paired."""

    row: str
    metric: str
    ours: float | None
    theirs: float | None
    difference: Estimate | None = None


@dataclass(frozen=True)
class RunComparison:
    """settings: values of both runs by dotted key, where they differ; None where a run does not have the key.
    unpaired: why scores are not paired; empty if they are."""

    settings: Mapping[str, tuple[Any, Any]]
    scores: tuple[ComparedScore, ...]
    unpaired: str


def compare_runs(ours: Path, theirs: Path) -> RunComparison:
    """Compare the runs in two folders.

    :raises CheckpointError: one is not the folder of a finished run
    :raises ConfigError: their tasks differ
    """
    summaries = read_summary(ours, _NEEDED), read_summary(theirs, _NEEDED)
    experiments = read_experiment(ours), read_experiment(theirs)
    first, second = summaries
    if first["task"] != second["task"]:
        raise ConfigError(
            f"{ours} is of task {first['task']} and {theirs} of task {second['task']}: scores of different tasks "
            "cannot be compared"
        )
    unpaired = _why_unpaired(*summaries, *experiments)
    by_unit = [{} if unpaired else _grouped(read_unit_scores(folder)) for folder in (ours, theirs)]
    if not unpaired and not all(by_unit):
        unpaired = "a run has no scores by test unit: an older version or privacy.report_scores left them out"
    scores = tuple(_scores(first, second, by_unit[0], by_unit[1]))
    if not unpaired and not any(one.difference for one in scores):
        unpaired = "the runs have no row in common with equally many test units"
    return RunComparison(_different(*experiments), scores, unpaired)


def changes_of_test_data(ours: Experiment, theirs: Experiment) -> list[str]:
    """Return the settings that differ and may change test data; empty if both have the same."""
    return [
        key
        for key in _different(ours, theirs)
        if key.startswith("data.") and not key.removeprefix("data.").startswith(_OF_TRAINING)
    ]


def _different(ours: Experiment, theirs: Experiment) -> dict[str, tuple[Any, Any]]:
    first, second = (_flat(one.model_dump(mode="json", exclude_none=True)) for one in (ours, theirs))
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key) and not key.startswith(_IGNORED)
    }


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _why_unpaired(ours: Mapping[str, Any], theirs: Mapping[str, Any], first: Experiment, second: Experiment) -> str:
    if ours["seeds"] != theirs["seeds"]:
        return f"the training seeds differ: {ours['seeds']} and {theirs['seeds']}"
    changed = changes_of_test_data(first, second)
    return f"the test data may differ, by {', '.join(changed)}" if changed else ""


def _grouped(rows: list[UnitScores]) -> dict[tuple[str, str], list[UnitScores]]:
    found: dict[tuple[str, str], list[UnitScores]] = {}
    for row in sorted(rows, key=lambda row: row.seed):
        found.setdefault((row.kind, row.name), []).append(row)
    return found


def _scores(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    first: Mapping[tuple[str, str], list[UnitScores]],
    second: Mapping[tuple[str, str], list[UnitScores]],
) -> Iterator[ComparedScore]:
    """Yield the headline metric of every common row, then the other figures of the main federations."""
    headline = ours["headline"]
    yield ComparedScore("teacher", headline, ours["teacher"].get(headline), theirs["teacher"].get(headline))
    mains = ours["federation"], theirs["federation"]
    common = [
        *(("control", name, name) for name in ours["controls"] if name in theirs["controls"]),
        *(("federation", name, name) for name in ours["federations"] if name in theirs["federations"]),
    ]
    if ("federation", *mains) not in common:
        common.append(("federation", *mains))
    for kind, name, other in common:
        title = name if name == other else f"{name} / {other}"
        if kind == "control":
            title = ROW_NAMES[name]
        rows = ours[f"{kind}s"][name], theirs[f"{kind}s"][other]
        paired = _paired(first.get((kind, name), []), second.get((kind, other), []))
        yield ComparedScore(title, headline, rows[0].get(headline), rows[1].get(headline), paired)
    rows = ours["federations"][mains[0]], theirs["federations"][mains[1]]
    title = mains[0] if mains[0] == mains[1] else " / ".join(mains)
    for metric in (*(score for score in SCORES if score != headline), *_MORE):
        own, other = (_number(row.get(metric)) for row in rows)
        if own is not None or other is not None:
            yield ComparedScore(title, metric, own, other)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _paired(ours: list[UnitScores], theirs: list[UnitScores]) -> Estimate | None:
    """Estimate theirs - ours; None without scores, or with other seeds or other numbers of units."""
    if not ours or [row.seed for row in ours] != [row.seed for row in theirs]:
        return None
    samples = [[row.scores for row in rows] for rows in (theirs, ours)]
    if len({len(scores) for sample in samples for scores in sample}) != 1:
        return None
    own, other = ([np.asarray(sample, dtype=np.float64)] for sample in samples)
    return estimate(difference(own, other))


def shown(value: Any) -> str:
    """Return a setting's value as in TOML; a dash for none."""
    return "–" if value is None else json.dumps(value, ensure_ascii=False)
