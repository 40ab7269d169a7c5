"""The results of a study as two tables: a row a cell, and a row a combination with means over its seeds.

Everything is read from the runs' ``summary.json``. What a summary does not say is missing in the table, never made
up; a cell that failed or was not run yet is a row that says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fed_distill.config import CONTROLS
from fed_distill.evaluation.metrics import SCORES, gap_closed, interval
from fed_distill.reporting.store import read_summary
from fed_distill.reporting.summary import YARDSTICKS
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.gains import gains
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places

FINISHED, FAILED, MISSING = "finished", "failed", "not run"
WHITE_BOX = {"ε at least (Steinke)": "audit.white_box.steinke", "ε at least (f-DP)": "audit.white_box.f_dp"}
"""Columns with what white-box audits show, by their titles."""
MEASURES = (
    "score", *SCORES, "merchant_accuracy", "worst_merchant_accuracy", "retention", "gap_closed", "gap_closed_auc",
    "above_server", "gain", "gain_auc", "downlink_bytes", "uplink_bytes", "sent_bytes", "total_bytes", "seconds",
    "run.seconds", "audit.auc", "audit.epsilon_lower_bound", *WHITE_BOX.values(),
    *(f"control.{name}" for name in CONTROLS), *(f"control_auc.{name}" for name in CONTROLS),
)  # fmt: skip
"""Columns that are averaged over the seeds of a combination."""
DESCRIBED = (
    "run.headline", "run.rounds", "run.merchants", "run.examples", "run.parameters", "worst_merchant", "privacy.unit",
    "run.versions",
)  # fmt: skip
"""Columns that say what was run; ``privacy.*`` has more, as the summaries do."""
LARGEST = ("privacy.epsilon", "privacy.delta")
"""Columns of which a combination has the largest over its seeds: a promise is as good as its weakest case."""
CONSTANT = ("privacy.unit", "privacy.accountant", "run.rounds", "run.headline")
"""Columns of which a combination has its first finished seed's, which is every seed's."""
BETWEEN = " | "
"""Stands between the items of a list that is written as one text."""


def results_table(study: Study, cells: Sequence[Cell], places: Places) -> pd.DataFrame:
    """One row a cell, those of controls included (``role``).

    Axes hold labels. ``score`` is the headline metric, named in ``run.headline``; ``control.X`` is that of control X on
    the same seed, ``control_auc.X`` its AUC, ``above_server`` the difference to the server alone, ``gain`` and
    ``gain_auc`` that to the study's baseline of the same seed. ``gap_closed`` is against those controls. Bytes are
    those of serialized messages for one merchant: a round's down and up, and in all rounds up (``sent_bytes``) and
    both. ``seconds`` are the federation's with its adaptation, ``run.seconds`` the cell's. ``privacy.*`` and
    ``audit.*`` are the summary's, flattened. CheckpointError if a finished summary is torn, or of another experiment
    (``Places.check``).
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
    table = table.assign(gain=gains(study, table, "score"), gain_auc=gains(study, table, "auc"))
    first = [*_head(study, cells[0], places, None), *DESCRIBED, *MEASURES]
    return table[[*first, *sorted(str(name) for name in table if name not in first)]]


def combinations_table(study: Study, results: pd.DataFrame) -> pd.DataFrame:
    """One row a combination of the axes, in the study's order.

    ``seeds`` of ``of`` cells are finished. For each of ``MEASURES`` there is the mean over those, missing if one of
    them lacks it (a mean over some would flatter; of attacks it is that of the cells that were attacked), and
    ``<name>_interval``, the half-width of its 95 % interval, missing for one seed. ``series`` names the combination
    without the axis that varies the privacy budget.
    """
    names = [axis.name for axis in study.axes]
    budget = study.budget_axis
    rows: list[dict[str, Any]] = []
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
            row[name], row[f"{name}_interval"] = _mean(values)
        rows.append(row)
    numbers = [*LARGEST, *MEASURES, *(f"{name}_interval" for name in MEASURES)]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, "float64"))


def flattened(table: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested tables as columns ``prefix.key.key``; lists as one text, of ``what: how`` where such pairs are."""
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
        "fingerprint": cell.fingerprint,
        "status": FINISHED if summary is not None else MISSING if reason is None else FAILED,
        "reason": reason,
    }


def _measured(summary: Mapping[str, Any], controls: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a finished run has measured, and how it compares with the controls of its seed."""
    student, headline = summary["student"], summary["headline"]
    down, up = (summary["bytes"][f"{way}_per_merchant_round"] for way in ("downlink", "uplink"))
    worst = student["worst_merchant"] or {}
    privacy = dict(summary["privacy"])
    audit = {key: value for key, value in (privacy.pop("audit", None) or {}).items() if key != "threat_models"}
    federation = summary["federations"][summary["federation"]]
    rounds = federation["rounds"]
    scores = {name: controls.get(name, {}).get(headline) for name in CONTROLS}
    score, server = student[headline], scores["server"]
    gaps = {
        key: gap_closed(student[metric], *(controls.get(name, {}).get(metric) for name in YARDSTICKS)).value
        for key, metric in (("gap_closed", headline), ("gap_closed_auc", "auc"))
    }
    return {
        "run.headline": headline,
        "score": score,
        **{name: student[name] for name in (*SCORES, "merchant_accuracy")},
        "worst_merchant": worst.get("merchant"),
        "worst_merchant_accuracy": worst.get("accuracy"),
        "retention": summary["retention"],
        **gaps,
        "above_server": None if score is None or server is None else score - server,
        "downlink_bytes": down,
        "uplink_bytes": up,
        "sent_bytes": rounds * up,
        "total_bytes": rounds * (down + up),
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
        "run.versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }


def _controls(summary: Mapping[str, Any] | None, wanted: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Each control's metrics from the run that has the controls; plain FedAvg is that run's own federation."""
    if summary is None:
        return {}
    return {name: summary["student"] if name == "fedavg" else summary["controls"][name] for name in wanted}


def _training_examples(summary: Mapping[str, Any]) -> int | None:
    """Training examples of all merchants; unknown where only some of them were used."""
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


def _mean(values: pd.Series) -> tuple[float | None, float | None]:
    known = [float(value) for value in values if not pd.isna(value)]
    return interval(known) if known and len(known) == len(values) else (None, None)
