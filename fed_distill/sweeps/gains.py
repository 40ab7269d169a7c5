"""The gain of each value of an axis over the study's baseline, paired by seed and by all other axes."""

import math
from collections.abc import Sequence

import pandas as pd

from fed_distill.evaluation.statistics import interval
from fed_distill.reporting.wording import UNKNOWN, number, signed
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.headline_metric import metric_name


def baseline_fingerprints(study: Study, results: pd.DataFrame) -> pd.Series:
    """Return the fingerprint of each cell's baseline, the cell with the same other labels and seed; missing for the
    baseline itself, without one, and where the baseline has another headline metric."""
    found: list[str | None] = [None] * len(results)
    if study.baseline is not None:
        axis, label = study.baseline
        keys = [results[name] for name in (*_others(study), *(["data_seed"] if study.data_seeds else []), "seed")]
        is_cell = results["role"] == "cell"
        own = is_cell & (results[axis] == label)
        places = list(zip(*keys, strict=True))
        rows = list(zip(places, results["fingerprint"], results["run.headline"], own, is_cell & ~own, strict=True))
        names = {place: (name, metric) for place, name, metric, is_own, _ in rows if is_own}
        for at, (place, _, metric, _, is_other) in enumerate(rows):
            name, measured_in = names.get(place, (None, None))
            found[at] = name if is_other and metric == measured_in else None
    return pd.Series(found, index=results.index, dtype="object")


def gain_by_cell(results: pd.DataFrame, column: str) -> pd.Series:
    """Return each cell's ``column`` minus that of its ``baseline``; missing without one."""
    known = dict(zip(results["fingerprint"], results[column], strict=True))
    theirs = [math.nan if name is None else known[name] for name in results["baseline"]]
    return results[column] - pd.Series(theirs, index=results.index, dtype="float64")


def gains_cells(study: Study, combinations: pd.DataFrame) -> list[list[str]]:
    """Return a text table: for each combination of the other axes, the baseline's headline metric and the gain of each
    other value with its interval, then their mean with its 95 % interval over the lines, and their minimum.
    Combinations that have no baseline in the study are left out.

    Empty without a baseline or without another axis.
    """
    if study.baseline is None or len(study.axes) == 1:
        return []
    axis, label = study.baseline
    others = _others(study)
    labels = [choice.label for one in study.axes if one.name == axis for choice in one.choices if choice.label != label]
    lines = [[*others, f"{label}: {metric_name(combinations)}", *labels]]
    columns: dict[str, list[float]] = {name: [] for name in labels}
    for key, group in combinations.groupby(others, sort=False):
        found = group.set_index(axis)
        if label not in found.index:
            continue
        base = float(found["score"].get(label, math.nan))
        added = [float(found["gain"].get(name, math.nan)) for name in labels]
        halves = [float(found["gain_interval"].get(name, math.nan)) for name in labels]
        for name, gain in zip(labels, added, strict=True):
            columns[name].append(gain)
        lines.append([*map(str, key), UNKNOWN if math.isnan(base) else number(base), *map(_shown, added, halves)])
    if len(lines) == 1:
        return []
    blank = [""] * len(others)
    return [
        *lines,
        ["mean", *blank, *(_mean(column) for column in columns.values())],
        ["worst", *blank, *(_shown(min(column, key=_least)) for column in columns.values())],
    ]


def _others(study: Study) -> list[str]:
    assert study.baseline is not None
    return [axis.name for axis in study.axes if axis.name != study.baseline[0]]


def _shown(gain: float, half: float = math.nan) -> str:
    return UNKNOWN if math.isnan(gain) else signed(gain) + ("" if math.isnan(half) else f" ± {number(half)}")


def _mean(column: Sequence[float]) -> str:
    """Return the mean over all lines; unknown if one is missing, because a mean over some would be biased."""
    if any(map(math.isnan, column)):
        return UNKNOWN
    mean, half = interval(column)
    return signed(mean) + ("" if half is None else f" ± {number(half)}")


def _least(gain: float) -> float:
    return -math.inf if math.isnan(gain) else gain
