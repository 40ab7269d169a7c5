"""Learning curves of a study: validation scores by round, against the bytes that a merchant has sent by then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

import pandas as pd

from fed_distill.reporting.store import read_records, read_summary
from fed_distill.sweeps.collect import FINISHED
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places


@dataclass(frozen=True)
class Step:
    """The mean validation score after a round, and the megabytes that a merchant had sent by then on average."""

    round: int
    megabytes: float
    value: float


@dataclass(frozen=True)
class ValidationCurve:
    """A series and its validated rounds in order. number: its index among all series, for colour and marker."""

    series: str
    number: int
    steps: Sequence[Step]


@dataclass(frozen=True)
class Learning:
    """Curves of the combinations whose cells are all finished. levels: validation scores of the controls, by name."""

    curves: Sequence[ValidationCurve]
    levels: Mapping[str, float]


def read_learning(
    study: Study, results: pd.DataFrame, combinations: pd.DataFrame, places: Places, controls: Mapping[str, str]
) -> Learning:
    """Read the rounds of all finished cells; a step is a mean over the cells of a combination.

    Rounds that were not validated in every cell have no step. Without curves where a series has several
    combinations, as over an axis of the privacy budget.

    :param controls: displayed name by control
    :raises CheckpointError: a summary or the records of a run are damaged
    """
    if not combinations["series"].is_unique:
        return Learning((), {})
    own = results[results["role"] == "cell"].groupby([axis.name for axis in study.axes], sort=False)
    curves = []
    for number, (series, (_, group)) in enumerate(zip(combinations["series"], own, strict=True)):
        if (group["status"] == FINISHED).all():
            steps = _mean_steps([_steps(name, places) for name in group["fingerprint"]])
            if steps:
                curves.append(ValidationCurve(str(series), number, steps))
    return Learning(curves, _levels(results, places, controls))


def _steps(name: str, places: Places) -> dict[int, Step]:
    """Return the validated rounds of a cell's federation."""
    summary = read_summary(places.run(name))
    rounds = [record for record in read_records(places.run(name)) if record["federation"] == summary["federation"]]
    sent = accumulate(record["total_bytes"]["uplink"] / summary["merchants"] / 1e6 for record in rounds)
    return {
        record["round"]: Step(record["round"], megabytes, value)
        for record, megabytes in zip(rounds, sent, strict=True)
        for value in ((record.get("valid") or {}).get(summary["headline"]),)
        if value is not None
    }


def _mean_steps(cells: Sequence[Mapping[int, Step]]) -> list[Step]:
    return [
        Step(number, fmean(cell[number].megabytes for cell in cells), fmean(cell[number].value for cell in cells))
        for number in sorted(set.intersection(*(set(cell) for cell in cells)))
    ]


def _levels(results: pd.DataFrame, places: Places, controls: Mapping[str, str]) -> dict[str, float]:
    """Return the mean of each control over its cells; none if controls differ between cells of one seed."""
    rows = results[results["role"] == "controls"]
    if rows[["data_seed", "seed"]].duplicated().any() or not (rows["status"] == FINISHED).all():
        return {}
    summaries = [read_summary(places.run(name)) for name in rows["fingerprint"]]
    found: dict[str, float] = {}
    for name, shown in controls.items():
        values = [_validation(summary, name) for summary in summaries]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[shown] = fmean(known)
    return found


def _validation(summary: Mapping[str, Any], control: str) -> float | None:
    row = summary["controls"].get(control) or {}
    value: float | None = (row.get("validation") or {}).get(summary["headline"])
    return value
