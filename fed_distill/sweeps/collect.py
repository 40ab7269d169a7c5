"""The results of a study as two tables: one row per cell, and one row per combination with means over its seeds.

Scores come from the runs' ``summary.json``, intervals from their ``unit_scores.json`` too. Missing values stay missing;
a cell that failed or has not run yet has a row with its state.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from fed_distill.config import CONTROLS
from fed_distill.config.controls import UNTRAINED
from fed_distill.data.dataset import test_to_train
from fed_distill.evaluation.metrics import SCORES
from fed_distill.evaluation.statistics import estimate, holm
from fed_distill.reporting.answers import bytes_of_a_merchant
from fed_distill.reporting.differences import REFERENCES
from fed_distill.reporting.run_comparison import changes_of_test_data
from fed_distill.reporting.store import read_summary
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.gains import baseline_fingerprints, gain_by_cell
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.samples import NO_UNITS, OWN, UnitTable, above, gain_estimate, gap_of, sample_of, shared_of

FINISHED, FAILED, MISSING = "finished", "failed", "not run"
WHITE_BOX = {"ε at least (Steinke)": "audit.white_box.steinke", "ε at least (f-DP)": "audit.white_box.f_dp"}
"""Columns with the bounds of white-box audits, by title."""
MEASURES = (
    "score", *SCORES, "merchant_accuracy", "worst_merchant_accuracy", "worst_tenth", "own_students",
    "own_above_global", "cold", "cold_above_server", "with_bm25", "with_bm25_above_server",
    "retention", "gap_closed", "gap_closed_auc", "above_server", "above_fedavg", "gain", "gain_auc",
    "downlink_bytes", "uplink_bytes", "sent_bytes", "total_bytes", "seconds", "run.seconds",
    "audit.auc", "audit.epsilon_lower_bound",
    *WHITE_BOX.values(),
    *(f"control.{name}" for name in CONTROLS), *(f"control_auc.{name}" for name in CONTROLS),
    *(f"control_cold.{name}" for name in CONTROLS), *(f"control_with_bm25.{name}" for name in CONTROLS),
)  # fmt: skip
"""Columns that are averaged over the data seeds and seeds of a combination."""
GAPS = {"gap_closed": ("control", OWN), "gap_closed_auc": ("control_auc", "auc")}
"""For each ratio: prefix of the controls' columns, and column of the student."""
DESCRIBED = (
    "run.headline", "run.rounds", "run.merchants", "run.examples", "run.parameters", "worst_merchant", "privacy.unit",
    "run.versions",
)  # fmt: skip
"""Columns that identify a run; ``privacy.*`` has more, as in the summaries."""
LARGEST = ("privacy.epsilon", "privacy.delta")
"""Columns with the maximum over the seeds of a combination, the weakest guarantee."""
CONSTANT = ("privacy.unit", "privacy.accountant", "run.rounds", "run.headline")
"""Columns that are equal for all seeds of a combination; the first finished seed's value is used."""
DIFFERENCES = (*(f"above_{name}" for name in REFERENCES), "gain")
"""Columns of paired differences of the headline metric, whose p-values are in ``<name>_p``."""
BETWEEN = " | "
"""Separator of list items in one cell."""


def results_table(study: Study, cells: Sequence[Cell], places: Places, units: UnitTable = NO_UNITS) -> pd.DataFrame:
    """Return one row per cell, controls included (``role``).

    Axes contain labels. ``test_to_train`` is 0 if each data seed has rows of its own. ``controls`` is the fingerprint
    of the cell with the controls. ``score`` is the headline metric, named in ``run.headline``. ``control.X`` is that of
    control X with the same seed, ``control_auc.X`` its AUC, ``control_cold.X`` its score on cold-start merchants,
    ``above_server`` and ``above_fedavg`` the differences to these controls, ``cold_above_server`` that on cold-start
    merchants. ``with_bm25`` is the score of the sum of the student's scores and BM25's, ``control_with_bm25.X`` and
    ``with_bm25_above_server`` likewise. ``own_students`` is the mean accuracy of the students that merchants keep, each
    on its merchant's test examples, ``own_above_global`` its difference to that of the global student at the same
    merchants. ``baseline`` is the fingerprint of the baseline's cell that is otherwise equal, ``gain`` and ``gain_auc``
    the differences to it, and ``same_test_data`` whether both have the same test data by their settings. ``gap_closed``
    uses the controls, and is missing where their scores by unit do not show that pooling is worth something. Bytes are
    serialized messages of one merchant: per round in which it takes part down and up, and over all rounds, on average
    over merchants, up (``sent_bytes``) and both. ``seconds`` is the time of the federation and its adaptation,
    ``run.seconds`` that of the cell. ``privacy.*`` and ``audit.*`` are the summary's, flattened.

    :raises CheckpointError: a summary is damaged or of another experiment (``Places.check``)
    """
    summaries = {cell.fingerprint: _summary(cell, places) for cell in cells}
    rows = []
    for cell in cells:
        summary = summaries[cell.fingerprint]
        compared = summaries.get(cell.controls or cell.fingerprint) if cell.controls or not cell.labels else None
        row = _head(study, cell, places, summary)
        if summary is not None:
            row |= _measured(summary, _controls(compared, study.base.controls))
        rows.append(row)
    table = pd.DataFrame(rows)
    absent = [name for name in (*DESCRIBED, *MEASURES, *LARGEST) if name not in table]
    table = table.assign(**dict.fromkeys(absent, None)).astype(dict.fromkeys((*MEASURES, *LARGEST), "float64"))
    table = table.assign(baseline=baseline_fingerprints(study, table))
    experiments = {cell.fingerprint: cell.experiment for cell in cells}
    pairs = zip(table["fingerprint"], table["baseline"], strict=True)
    table = table.assign(
        same_test_data=[
            one is not None and not changes_of_test_data(experiments[own], experiments[one]) for own, one in pairs
        ],
        gain=gain_by_cell(table, "score"),
        gain_auc=gain_by_cell(table, "auc"),
    )
    for name, columns in GAPS.items():
        gaps = [gap_of(table.iloc[[at]], *columns, units).value for at in range(len(table))]
        table[name] = pd.Series(gaps, index=table.index, dtype="float64")
    first = [*_head(study, cells[0], places, None), "baseline", "same_test_data", *DESCRIBED, *MEASURES]
    return table[[*first, *sorted(str(name) for name in table if name not in first)]]


def combinations_table(study: Study, results: pd.DataFrame, units: UnitTable = NO_UNITS) -> pd.DataFrame:
    """Return one row per combination of the axes, in the study's order.

    ``seeds`` of ``of`` cells are finished. For each of ``MEASURES`` there is the mean over these, missing if one is
    missing (a mean over some would be biased; for attacks, it is over the attacked cells), and ``<name>_interval``, the
    half-width of its 95 % interval (``evaluation.statistics``), for the headline metric and its differences to
    controls and the baseline with the chance of test data; missing where nothing is repeated. ``covers`` names
    what the headline's covers. ``above_server_p``, ``above_fedavg_p`` and ``gain_p`` are p-values of the paired
    differences, each with Holm's correction over the combinations of the study, of which those with the same runs are
    one hypothesis. ``gap_closed`` is a ratio of means.
    ``series`` names the combination without the axis of the privacy budget.
    """
    names = [axis.name for axis in study.axes]
    budget = study.budget_axis
    rows: list[dict[str, Any]] = []
    runs: list[tuple[frozenset[Any], ...]] = []
    own = results[results["role"] == "cell"]
    for labels, group in own.groupby(names, sort=False):
        done = group[group["status"] == FINISHED]
        row: dict[str, Any] = dict(zip(names, labels, strict=True))
        kept = [str(row[name]) for name in names if name != budget]
        row |= {"series": " · ".join(kept) or study.name, "seeds": len(done), "of": len(group)}
        row |= {name: done[name].iloc[0] if len(done) and name in done else None for name in CONSTANT}
        row |= {name: _largest(done[name]) for name in LARGEST}
        for name in MEASURES:
            values = done[name].dropna() if name.startswith("audit.") else done[name]
            row[name], row[f"{name}_interval"] = _mean(done.loc[values.index], name, units)
        runs.append((frozenset(group["fingerprint"]), frozenset(group["baseline"])))
        rows.append(row | _compared(done, units))
    for name in DIFFERENCES:
        hypotheses = [run if name == "gain" else run[:1] for run in runs]
        _adjust(rows, f"{name}_p", hypotheses)
    numbers = [*LARGEST, *MEASURES, *(f"{name}_interval" for name in MEASURES), *(f"{name}_p" for name in DIFFERENCES)]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))


def _adjust(rows: Sequence[dict[str, Any]], column: str, hypotheses: Sequence[Hashable]) -> None:
    """Replace p-values by those with Holm's correction; rows of the same hypothesis count once."""
    adjusted = holm({one: row[column] for one, row in zip(hypotheses, rows, strict=True) if row[column] is not None})
    for one, row in zip(hypotheses, rows, strict=True):
        row[column] = adjusted.get(one)


def flattened(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Flatten nested tables to ``prefix.key.key``; lists become one text, with ``what: how`` for such pairs."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat.update(flattened(value, name))
        elif isinstance(value, (list, tuple)):
            flat[name] = BETWEEN.join(_written(item) for item in value)
        else:
            flat[name] = value
    return flat


def _summary(cell: Cell, places: Places) -> dict[str, Any] | None:
    if not places.is_finished(cell.fingerprint):
        return None
    places.check(cell)
    return read_summary(places.run(cell.fingerprint))


def _head(study: Study, cell: Cell, places: Places, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    reason = places.reason(cell.fingerprint)
    return {
        "role": cell.role,
        **{axis.name: cell.labels.get(axis.name) for axis in study.axes},
        "seed": cell.seed,
        "data_seed": cell.data_seed,
        "test_to_train": test_to_train(cell.experiment.data),
        "fingerprint": cell.fingerprint,
        "controls": cell.controls,
        "status": FINISHED if summary is not None else MISSING if reason is None else FAILED,
        "reason": reason,
    }


def _measured(summary: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the measurements of a finished run, and its differences to the controls of its seed."""
    student, headline = summary["student"], summary["headline"]
    down, up = (summary["bytes"][f"{way}_per_merchant_round"] for way in ("downlink", "uplink"))
    worst = student["worst_merchant"] or {}
    privacy = dict(summary["privacy"])
    audit = {key: value for key, value in (privacy.pop("audit", None) or {}).items() if key != "threat_models"}
    federation = summary["federations"][summary["federation"]]
    whole = bytes_of_a_merchant(summary, summary["federation"], {**federation, "bytes": summary["bytes"]})
    scores: dict[str, Any] = {name: controls.get(name, {}).get(headline) for name in CONTROLS}
    score = student[headline]
    beside = {
        of: {name: _of(controls.get(name, {}), of, headline) for name in CONTROLS} for of in ("cold", "with_bm25")
    }
    personal, of_global = ((student.get("own_students") or {}).get(name) for name in ("mean", "global_mean"))
    return {
        "run.headline": headline,
        "score": score,
        **{name: student.get(name) for name in SCORES},
        "merchant_accuracy": student["merchant_accuracy"],
        "worst_merchant": worst.get("merchant"),
        "worst_merchant_accuracy": worst.get("accuracy"),
        "worst_tenth": student.get("worst_tenth"),
        "own_students": personal,
        "own_above_global": _difference(personal, of_global),
        **{of: _of(student, of, headline) for of in beside},
        **{
            f"{of}_above_server": _difference(_of(student, of, headline), values["server"])
            for of, values in beside.items()
        },
        "retention": summary["retention"],
        **{f"above_{name}": _difference(score, scores[name]) for name in REFERENCES},
        "downlink_bytes": down,
        "uplink_bytes": up,
        "sent_bytes": whole["uplink"],
        "total_bytes": sum(whole.values()),
        "seconds": federation["seconds"],
        "run.rounds": summary["rounds"],
        "run.merchants": summary["merchants"],
        "run.examples": _training_examples(summary),
        "run.parameters": student["parameters"],
        "run.seconds": summary["seconds"],
        **flattened(privacy, "privacy"),
        **flattened(audit, "audit"),
        **{f"control.{name}": value for name, value in scores.items()},
        **{f"control_auc.{name}": controls.get(name, {}).get("auc") for name in CONTROLS},
        **{f"control_{of}.{name}": value for of, values in beside.items() for name, value in values.items()},
        "run.versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }


def _of(row: Mapping[str, Any], part: str, headline: str) -> float | None:
    """Return the headline metric of a part of the scores that has its own, such as that on cold-start merchants."""
    return (row.get(part) or {}).get(headline)


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _controls(summary: Mapping[str, Any] | None, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return each control's metrics from the run with the controls; ``fedavg`` is that run's own federation."""
    if summary is None:
        return {}
    rows = {**summary["controls"], "fedavg": summary["student"]}
    return {name: rows[name] for name in wanted if name in rows or name not in UNTRAINED}


def _training_examples(summary: Mapping[str, Any]) -> int | None:
    """Return the number of training examples of all merchants; None if only some of them were used."""
    data = summary["data"]
    if "limited_to" in data:
        return None
    count = data.get("examples", {}).get("train")
    return None if count is None else int(count)


def _written(item: Any) -> str:
    return f"{item['what']}: {item['how']}" if isinstance(item, Mapping) and {"what", "how"} <= set(item) else str(item)


def _largest(values: pd.Series) -> float | None:
    known = [float(value) for value in values if not pd.isna(value)]
    return max(known) if known and len(known) == len(values) else None


def _mean(rows: pd.DataFrame, column: str, units: UnitTable) -> tuple[float | None, float | None]:
    sample = sample_of(rows, column, units if column == OWN or column.startswith("control.") else None)
    if sample is None:
        return None, None
    found = estimate(sample, shared_of(rows))
    return found.value, found.half_width


def _compared(done: pd.DataFrame, units: UnitTable) -> dict[str, Any]:
    """Return a combination's differences to controls and to the baseline, and its gaps closed."""
    scores = sample_of(done, OWN, units)
    row: dict[str, Any] = {"covers": BETWEEN.join(estimate(scores).covers) if scores is not None else ""}
    found = [*(above(done, name, units) for name in REFERENCES), gain_estimate(done, units)]
    for name, one in zip(DIFFERENCES, found, strict=True):
        if one is not None:
            row |= {name: one.value, f"{name}_interval": one.half_width}
        row[f"{name}_p"] = one.p_value if one is not None else None
    for name, (prefix, own) in GAPS.items():
        share = gap_of(done, prefix, own, units)
        row |= {name: share.value, f"{name}_interval": share.half_width}
    return row
