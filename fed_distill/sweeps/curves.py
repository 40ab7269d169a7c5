"""What the figures and sentences of a study are about: curves over ε, levels of the controls, the Pareto front.

Taken from the tables of results; nothing is drawn here.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fed_distill.config import is_protected
from fed_distill.evaluation.metrics import interval


@dataclass(frozen=True)
class Reading:
    """A combination's mean of some measure at the ε that was spent (infinite without privacy), ± ``half_width``."""

    epsilon: float
    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Curve:
    """A series and its readings by rising ε. number: its place among all series, for colour and marker."""

    series: str
    number: int
    readings: Sequence[Reading]


@dataclass(frozen=True)
class ControlLevel:
    """A control's mean, ± ``half_width``: the same whatever ε is."""

    name: str
    value: float
    half_width: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """A combination as a choice: quality for ε and what a merchant sends in all rounds. best: no other is at least as
    good in all and better in one.

    epsilon: rounded up, so that a promise is not better for what was left of it; None where it is 0 or the run did
    not say it: such an offer is compared with nobody.
    """

    series: str
    number: int
    epsilon: float | None
    value: float
    megabytes: float
    best: bool = False


def epsilon_of(row: Mapping[Hashable, Any]) -> float | None:
    """The ε that a combination's runs have spent, the largest over its seeds; infinite without privacy, None if
    unknown."""
    if not is_protected(row["privacy.unit"]):
        return math.inf
    found = row["privacy.epsilon"]
    return found if isinstance(found, float) and not math.isnan(found) else None


def rounded_up(epsilon: float) -> float:
    """An ε with two digits, not smaller than it was, so that it is still a true promise; 0 and ∞ stay."""
    if not epsilon or math.isinf(epsilon):
        return epsilon
    digits = 1 - math.floor(math.log10(epsilon))
    return math.ceil(epsilon * 10.0**digits - 1e-9) / 10.0**digits


def series_numbers(combinations: pd.DataFrame) -> dict[str, int]:
    """Series -> its place, in the study's order."""
    return {str(name): number for number, name in enumerate(dict.fromkeys(combinations["series"]))}


def curves(combinations: pd.DataFrame, measure: str) -> list[Curve]:
    """Each series over ε, in the study's order; a series that has the measure at no known ε is left out.

    An ε of 0, which says that nothing private was used, has no place on a logarithmic axis and is left out too.
    Combinations of one series with the same ε (which a study without an axis for the budget has) are not a curve:
    the first of them is kept.
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


def levels(results: pd.DataFrame, names: Mapping[str, str], of: str = "control") -> list[ControlLevel]:
    """Means over the seeds of the controls in ``names`` (control -> name shown), those that were measured.

    of: what of them: ``control`` for the headline metric, ``control_auc`` for the AUC.

    Empty where cells have different controls on one seed, because then there is no one level.
    """
    rows = results[results["role"] == "controls"]
    if rows["seed"].duplicated().any():
        return []
    values = {shown: [float(value) for value in rows[f"{of}.{name}"].dropna()] for name, shown in names.items()}
    return [ControlLevel(shown, *interval(found)) for shown, found in values.items() if found]


def offers(combinations: pd.DataFrame) -> list[Tradeoff]:
    """Every measured combination, with those marked that no other one beats (Pareto: higher value, smaller ε, fewer
    bytes)."""
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
    """What counts, each the more the better."""
    return None if offer.epsilon is None else (offer.value, -offer.epsilon, -offer.megabytes)


def _beats(other: tuple[float, float, float] | None, rank: tuple[float, float, float]) -> bool:
    return other is not None and other != rank and all(theirs >= ours for theirs, ours in zip(other, rank, strict=True))
