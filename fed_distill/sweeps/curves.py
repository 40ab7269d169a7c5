"""Data of a study's figures and sentences: curves over ε, levels of the controls, the Pareto front.

Computed from the tables of results, without drawing.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fed_distill.config import is_protected
from fed_distill.evaluation.statistics import estimate
from fed_distill.sweeps.samples import UnitTable, sample_of, shared_of

Row = Mapping[Hashable, Any]
"""A combination's columns (``collect.combinations_table``)."""


@dataclass(frozen=True)
class Reading:
    """A combination's mean at its spent ε (infinite without privacy), ± ``half_width``."""

    epsilon: float
    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Curve:
    """A series and its readings in order of ε. number: its index among all series, for colour and marker."""

    series: str
    number: int
    readings: Sequence[Reading]


@dataclass(frozen=True)
class ControlLevel:
    """A control's mean, ± ``half_width``, independent of ε."""

    name: str
    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """A combination's quality, ε and bytes sent per merchant in all rounds. best: it is Pareto-optimal.

    epsilon: rounded up, so that unused budget does not improve it; None if it is 0 or unknown, which excludes the
    combination from the Pareto front.
    """

    series: str
    number: int
    epsilon: float | None
    value: float
    megabytes: float
    best: bool = False


def epsilon_of(row: Row) -> float | None:
    """Return the maximum spent ε over a combination's seeds; infinite without privacy, None if unknown."""
    if not is_protected(row["privacy.unit"]):
        return math.inf
    found = row["privacy.epsilon"]
    return found if isinstance(found, float) and not math.isnan(found) else None


def rounded_up(epsilon: float) -> float:
    """Round ε up to two digits, so that it stays a valid bound; 0 and ∞ are unchanged."""
    if not epsilon or math.isinf(epsilon):
        return epsilon
    digits = 1 - math.floor(math.log10(epsilon))
    return math.ceil(epsilon * 10.0**digits - 1e-9) / 10.0**digits


def series_numbers(combinations: pd.DataFrame) -> dict[str, int]:
    """Return the index of each series, in the study's order."""
    return {str(name): number for number, name in enumerate(dict.fromkeys(combinations["series"]))}


def curves(combinations: pd.DataFrame, measure: str) -> list[Curve]:
    """Return each series over ε, in the study's order, without series that have no value at a known ε.

    An ε of 0 (no private data were used) has no position on a logarithmic axis and is dropped. If combinations of one
    series have the same ε, as in a study without a budget axis, the first one is kept.
    """
    found = []
    for series, number in series_numbers(combinations).items():
        readings: dict[float, Reading] = {}
        for row in combinations[combinations["series"] == series].to_dict("records"):
            epsilon, value = epsilon_of(row), row[measure]
            if epsilon and not math.isnan(value):
                half = row[f"{measure}_interval"]
                readings.setdefault(epsilon, Reading(epsilon, value, None if math.isnan(half) else half))
        if readings:
            found.append(Curve(series, number, [readings[epsilon] for epsilon in sorted(readings)]))
    return found


def levels(
    results: pd.DataFrame, names: Mapping[str, str], of: str = "control", units: UnitTable | None = None
) -> list[ControlLevel]:
    """Return the means over data seeds and seeds of the measured controls in ``names`` (displayed name by control).

    Without those that a cell lacks, and empty if controls differ between cells of one seed, since there is no common
    level then.

    :param of: ``control`` for the headline metric, ``control_auc`` for the AUC, ``control_cold`` for the headline
        metric on cold-start merchants, ``control_with_bm25`` for that of the sum with BM25
    :param units: scores by test unit for the headline metric
    """
    rows = results[results["role"] == "controls"]
    if rows[["data_seed", "seed"]].duplicated().any():
        return []
    found = []
    for name, shown in names.items():
        sample = sample_of(rows, f"{of}.{name}", units)
        if sample is not None:
            level = estimate(sample, shared_of(rows))
            found.append(ControlLevel(shown, level.value, level.half_width))
    return found


def offers(combinations: pd.DataFrame) -> list[Tradeoff]:
    """Return all measured combinations; those on the Pareto front (higher value, smaller ε, fewer bytes) are marked."""
    numbers = series_numbers(combinations)
    found = [
        Tradeoff(row["series"], numbers[row["series"]], epsilon, row["score"], row["sent_bytes"] / 1e6)
        for row in combinations.to_dict("records")
        for epsilon in (rounded_up(epsilon_of(row) or 0.0) or None,)
        if not math.isnan(row["score"]) and not math.isnan(row["sent_bytes"])
    ]
    ranks = [_rank(offer) for offer in found]
    return [
        replace(offer, best=rank is not None and not any(_beats(other, rank) for other in ranks))
        for offer, rank in zip(found, ranks, strict=True)
    ]


def _rank(offer: Tradeoff) -> tuple[float, float, float] | None:
    """Return the criteria, each to be maximized."""
    return None if offer.epsilon is None else (offer.value, -offer.epsilon, -offer.megabytes)


def _beats(other: tuple[float, float, float] | None, rank: tuple[float, float, float]) -> bool:
    return other is not None and other != rank and all(theirs >= ours for theirs, ours in zip(other, rank, strict=True))
