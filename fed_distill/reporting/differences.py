"""Samples of a run's rows, and their paired differences, for ``summary.json``.

A run has one data seed: its intervals cover training seeds, and for the headline metric test data, but not another
split. That takes a study with ``data_seeds``.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from fed_distill.evaluation.statistics import Estimate, Sample, difference, estimate, holm
from fed_distill.reporting.outcome import Outcome

REFERENCES = ("server", "fedavg")
"""The controls that every row is compared with."""
Key = TypeVar("Key", bound=Hashable)


def sample_of(units: Sequence[Outcome], metric: str) -> Sample | None:
    """Return a row's scores, in order of the seeds; None if the metric is undefined for one of them."""
    ordered = sorted(units, key=lambda unit: unit.seed)
    if ordered and all(unit.by_unit and metric == _metric_by_unit(unit) for unit in ordered):
        return [np.array([unit.by_unit for unit in ordered], dtype=np.float64)]
    return column([unit.metrics.get(metric) for unit in ordered])


def summed(units: Sequence[Outcome]) -> list[Outcome] | None:
    """Return a row's results with the scores of the sum with BM25; None unless all seeds have them."""
    found = [one for unit in units if (one := unit.summed()) is not None]
    return found if len(found) == len(units) else None


def column(values: Sequence[float | None]) -> Sample | None:
    """Return one value for each training seed as a sample without test units; None if one is undefined, because a mean
    over some seeds would be biased."""
    known = [value for value in values if value is not None]
    return [np.array(known, dtype=np.float64)[:, None]] if known and len(known) == len(values) else None


def paired(ours: Sequence[Outcome], theirs: Sequence[Outcome], metric: str) -> Estimate | None:
    """Estimate the mean difference of two rows, paired by test unit where both have them; None if they were not
    measured on the same seeds."""
    own, other = sample_of(ours, metric), sample_of(theirs, metric)
    if own is None or other is None or {unit.seed for unit in ours} != {unit.seed for unit in theirs}:
        return None
    if own[0].shape != other[0].shape:  # one of them was stored by a release without these scores by unit
        own, other = ([part.mean(axis=1, keepdims=True) for part in one] for one in (own, other))
    return estimate(difference(own, other))


def family(rows: Mapping[Key, Sequence[Outcome]], reference: Key, metric: str) -> dict[Key, dict[str, Any]]:
    """Compare every row with one of them. ``p_adjusted`` is Holm's over the family of these comparisons; rows without
    a difference are left out."""
    if reference not in rows:
        return {}
    found = {key: paired(units, rows[reference], metric) for key, units in rows.items() if key != reference}
    known = {key: one for key, one in found.items() if one is not None}
    adjusted = holm({key: one.p_value for key, one in known.items() if one.p_value is not None})
    return {key: {**described(one), "p_adjusted": adjusted.get(key)} for key, one in known.items()}


def described(found: Estimate) -> dict[str, Any]:
    """Return an estimate as JSON: value, half-width of its 95 % interval, p-value and what the interval covers."""
    return {
        "value": found.value,
        "half_width": found.half_width,
        "p_value": found.p_value,
        "covers": list(found.covers),
    }


def added(
    controls: Mapping[str, Sequence[Outcome]],
    main: Sequence[Outcome],
    start: str,
    metric: str,
    above: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]],
) -> dict[str, dict[str, Any] | None]:
    """Return the run's headline: what the teacher, federation and domain adaptation add.

    ``teacher`` is server - student. ``federation`` is the main federation, before domain adaptation, minus the student
    that its merchants start from, ``server`` or (``federation.start = "labels"``) ``student``. ``adaptation`` is the
    main federation after adaptation - before. ``federation_without_teacher`` is fedavg - student. None if a row of them
    was not measured. ``over`` is the row that is subtracted, and ``p_adjusted`` the p-value that the table, whose
    federations are adapted, has for this pair; None if it does not have the pair.

    :param above: the table's comparisons, by reference and by kind and name of the row, as ``family`` returns them
    """
    first = "student" if start == "labels" else "server"
    ours = ("federation", main[0].name)
    without = ("control", "student")
    before = [unit.unadapted() for unit in main]
    unchanged = all(
        (one.metrics.get(metric), one.by_unit) == (unit.metrics.get(metric), unit.by_unit)
        for one, unit in zip(before, main, strict=True)
    )
    adapted = main if any(unit.before_adaptation is not None for unit in main) else None
    rows = {**controls, "federation": before}
    pairs = {
        "teacher": (controls.get("server"), "student", above["server"].get(without)),
        "federation": (before, first, above["server"].get(ours) if first == "server" and unchanged else None),
        "adaptation": (adapted, "federation", None),
        "federation_without_teacher": (controls.get("fedavg"), "student", above["fedavg"].get(without)),
    }
    found: dict[str, dict[str, Any] | None] = {}
    for name, (units, base, in_table) in pairs.items():
        theirs = rows.get(base)
        one = None if units is None or theirs is None else paired(units, theirs, metric)
        adjusted = None if in_table is None else in_table["p_adjusted"]
        found[name] = None if one is None else {**described(one), "over": base, "p_adjusted": adjusted}
    return found


def _metric_by_unit(outcome: Outcome) -> str:
    """Return the metric that is the mean of ``by_unit``."""
    return next((name for name in ("ndcg@10", "qini") if name in outcome.metrics), "macro_f1")
