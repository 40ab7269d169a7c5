"""A run's headline as text: what the teacher, federation and domain adaptation add, with intervals."""

from collections.abc import Mapping
from typing import Any

from fed_distill.reporting.wording import METRIC_NAMES, ROW_NAMES, UNKNOWN, number, signed

ADDED = {
    "teacher": "The teacher adds",
    "federation": "Federation adds",
    "adaptation": "Adaptation adds",
    "federation_without_teacher": "Federation without a teacher adds",
}
"""Titles of ``summary["adds"]``."""
BASES = {"student": "labels only", "server": "server alone", "federation": "the federated student"}
"""Short names of the rows that are subtracted, ``over`` in ``summary["adds"]``."""
SIGNIFICANT = 0.05
"""The p-value, after Holm's correction, from which on a difference is not certain."""


def added(found: Mapping[str, Any] | None) -> str:
    """Format a difference with its interval; a dash if it was not measured."""
    if found is None:
        return UNKNOWN
    half = found["half_width"]
    return signed(found["value"]) + ("" if half is None else f" ± {number(half)}")


def compared(found: Mapping[str, Any] | None) -> str:
    """Format a paired difference with its interval and its adjusted p-value."""
    if found is None or found["p_adjusted"] is None:
        return added(found)
    p_value = probability(found["p_adjusted"])
    return f"{added(found)}, p {p_value if p_value.startswith('<') else f'= {p_value}'}"


def probability(p_value: float) -> str:
    """Format a p-value; small ones as ``< 0.001``."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def covers(summary: Mapping[str, Any]) -> str:
    """State what the headline metric's intervals cover, in one sentence."""
    covered = summary["interval_covers"]
    if not covered:
        return "With one seed, differences may be due to chance: this metric has no interval over test data."
    missing = [] if "training seeds" in covered else ["other training seeds (there is one)"]
    return (
        f"± is the half-width of the 95 % interval over {' and '.join(covered)}; it does not cover "
        f"{' or '.join([*missing, 'another split of the data'])}."
    )


def headline(summary: Mapping[str, Any]) -> str:
    """Return what the teacher, federation (also without a teacher) and domain adaptation add in the headline metric,
    one sentence each, and another if FedAvg without a teacher scores above the run's method."""
    adds, metric = summary["adds"], METRIC_NAMES[summary["headline"]]
    parts = []
    if adds["teacher"] is not None:
        parts.append(
            f"The teacher adds {added(adds['teacher'])} {metric} ({ROW_NAMES['server']} minus "
            f"{ROW_NAMES['student']}){_reservation(adds['teacher'])}."
        )
    if adds["federation"] is not None:
        parts.append(f"Federation adds {added(adds['federation'])}{_reservation(adds['federation'])}.")
    plain = adds.get("federation_without_teacher")
    if plain is not None and summary["federation"] != "fedavg":
        parts.append(f"FedAvg without a teacher adds {added(plain)} to {BASES['student']}{_reservation(plain)}.")
    adaptation = adds.get("adaptation")
    if adaptation is not None and (adaptation["value"] or adaptation["half_width"]):  # a stage was kept
        parts.append(f"Domain adaptation adds {added(adaptation)}{_reservation(adaptation)}.")
    if (ahead := _fedavg_ahead(summary)) is not None:
        half = "" if ahead["half_width"] is None else f" ± {number(ahead['half_width'])}"
        parts.append(
            f"FedAvg without a teacher scores {number(ahead['value'])}{half} higher than this method"
            f"{_reservation(ahead)}."
        )
    return " ".join(parts)


def _fedavg_ahead(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the control fedavg minus the run's method, paired where they were measured on the same seeds; None unless
    it is positive."""
    main, name = summary["federations"][summary["federation"]], summary["headline"]
    pair = main["above"]["fedavg"]
    if pair is not None:
        found = {**pair, "value": -pair["value"]}
    else:
        control = summary["controls"].get("fedavg", {})
        if control.get(name) is None or main[name] is None:
            return None
        found = {"value": control[name] - main[name], "half_width": None}
    return found if found["value"] > 0 else None


def _reservation(found: Mapping[str, Any]) -> str:
    """Say if a difference may be chance: by its own interval, then by the p-value of the table, which has Holm's
    correction. The interval of a difference is not corrected, and may exclude 0 where that p-value is not small."""
    half, p_value = found["half_width"], found.get("p_adjusted")
    if half is None:
        return " (no interval: set repeats)"
    if abs(found["value"]) <= half:
        return ", which is within chance"
    if p_value is not None and p_value >= SIGNIFICANT:
        return f" (p = {probability(p_value)} among the rows of the table: not certain)"
    return ""
