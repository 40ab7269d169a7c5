"""The summary and the rounds as data frames, and as the table of a README."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fed_distill.evaluation.metrics import SCORES
from fed_distill.privacy.disclosure import WHY, is_private
from fed_distill.reporting.differences import REFERENCES
from fed_distill.reporting.headline import compared
from fed_distill.reporting.wording import METRIC_NAMES, ROW_NAMES, UNKNOWN, duration, number, percent, size

STAR = " *"
"""Marks figures without protection in a private run."""


def comparison_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row for the teacher, each level of a chain, each control and each federation.

    Columns are ``name``, ``kind``, for a private run ``protected`` (see ``disclosure.protected``), and metrics with the
    headline first: means over the seeds in the units of ``summary.json``. ``<metric>_interval`` is the half-width of
    the 95 % interval, missing where nothing is repeated. ``above_server`` and ``above_fedavg`` are paired differences
    to these controls, ``above_server_p`` their p-values by Holm's correction over the rows. ``cold`` is the headline
    metric on cold-start merchants, ``with_bm25`` that of the sum of the student's scores and BM25's, and
    ``with_bm25_above_server`` its paired difference to the sum of *server alone*.
    """
    headline = summary["headline"]
    rows = [_row("teacher", "teacher", summary["teacher"], {}, headline)]
    rows += [
        _row(name, "control", row, summary["intervals"]["controls"][name], headline)
        for name, row in summary["controls"].items()
    ]
    rows[1:1] = [_row(title, "level", row, row["interval"], headline) for title, row in summary["levels"].items()]
    rows += [_row(title, "federation", row, row["interval"], headline) for title, row in summary["federations"].items()]
    metrics = _headline_first(summary)
    columns = ["name", "kind", *(["protected"] if is_private(summary["privacy"]) else []), *metrics]
    columns += [
        "merchant_accuracy",
        "worst_merchant",
        "worst_merchant_accuracy",
        "worst_tenth",
        "cold",
        "with_bm25",
        "retention",
        "gap_closed",
        "gap_closed_auc",
    ]
    differences = (*(f"above_{name}" for name in REFERENCES), "with_bm25_above_server")
    columns += [f"{name}{part}" for name in differences for part in ("", "_interval", "_p")]
    columns += ["downlink_bytes", "uplink_bytes", "rounds", "seconds"]
    measured = [*metrics, "merchant_accuracy", "with_bm25", "retention", "gap_closed", "gap_closed_auc", "seconds"]
    table = pd.DataFrame(rows, columns=[*columns, *(f"{name}_interval" for name in measured)])
    numbers = table.columns.difference(["name", "kind", "protected", "worst_merchant"])
    return table.astype(dict.fromkeys(numbers, "float64"))


def rounds_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per record of ``metrics.jsonl``; nested values are ``valid.auc``, ``bytes.uplink`` ..."""
    return pd.json_normalize([dict(record) for record in records])


def merchants_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per merchant: test examples, then its accuracy (mean over the seeds) by control and federation.

    For a private run, numbers of test examples are unknown and accuracies are rounded to whole per cent. A federation
    with the name of a control gets the prefix ``federation:``.
    """
    stored = summary["by_merchant"]
    counts = stored["counts"]
    columns: dict[str, Mapping[str, Any]] = {"test_examples": counts or {}, **stored["controls"]}
    for title, accuracies in stored["federations"].items():
        columns[f"federation:{title}" if title in stored["controls"] else title] = accuracies
    names = sorted({name for accuracies in columns.values() for name in accuracies})
    table = pd.DataFrame(columns, index=pd.Index(names, name="merchant")).reset_index()
    return table if counts is not None else table.drop(columns="test_examples")


def comparison_cells(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the comparison as text with a header; ± is the half-width of the 95 % interval, see ``headline.covers``.

    Controls have the names of ``ROW_NAMES``. For a private run, a star marks rows and columns that are not covered by
    the guarantee. Columns without a value in any row are left out, such as the gap closed in AUC where pooling is not
    above the server's student in AUC.
    """
    metrics = [name for name in _headline_first(summary) if name != "mrr@10"]
    gaps = ["gap_closed", *(["gap_closed_auc"] if summary["headline"] == "ndcg@10" else [])]
    mark = STAR if is_private(summary["privacy"]) else ""
    header = ["", *(METRIC_NAMES[name] for name in metrics), f"merchants: mean{mark}", f"worst{mark}"]
    header += [f"worst tenth{mark}", *(f"above {name}" for name in REFERENCES), "with BM25"]
    header += ["with BM25 above server", "cold start"]
    header += ["retention", *("gap closed", "gap closed in AUC")[: len(gaps)], "up / down a round", "time"]
    lines = [header]
    for row in comparison_table(summary).to_dict("records"):
        name = ROW_NAMES[row["name"]] if row["kind"] == "control" else str(row["name"])
        name += STAR if row.get("protected") is False else ""
        cells = [name, *(_with_interval(row, metric, number) for metric in metrics)]
        cells += [number(_value(row, key), 3) for key in ("merchant_accuracy", "worst_merchant_accuracy")]
        cells += [number(_value(row, "worst_tenth"), 3), *(compared(_above(row, f"above_{one}")) for one in REFERENCES)]
        cells += [_with_interval(row, "with_bm25", number), compared(_above(row, "with_bm25_above_server"))]
        cells += [number(_value(row, "cold")), percent(_value(row, "retention"), 1)]
        cells += [_with_interval(row, gap, percent) for gap in gaps]
        sent = [_value(row, key) for key in ("uplink_bytes", "downlink_bytes")]
        cells += [" / ".join(map(size, sent)) if any(sent) else UNKNOWN, duration(_value(row, "seconds"))]
        lines.append(cells)
    filled = [place for place in range(len(header)) if any(line[place] != UNKNOWN for line in lines[1:])]
    return [[line[place] for place in filled] for line in lines]


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Return ``comparison_cells`` as a Markdown table with the federations in bold."""
    header, *rows = comparison_cells(summary)
    lines = [_line([cell.replace("*", "\\*") for cell in header]), _line(["---", *["---:"] * (len(header) - 1)])]
    for name, *cells in rows:
        own = f"**{name}**" if name in summary["federations"] else name.replace("*", "\\*")
        lines.append(_line([own, *cells]))
    note = f"\n\\* {WHY}\n" if is_private(summary["privacy"]) else ""
    return "\n".join(lines) + "\n" + note


def _row(name: str, kind: str, row: Mapping[str, Any], intervals: Mapping[str, Any], headline: str) -> dict[str, Any]:
    worst = row.get("worst_merchant") or {}
    sent = row.get("bytes", {})
    summed = row.get("with_bm25") or {}
    above = {f"above_{name}": found for name, found in row.get("above", {}).items()}
    return {
        **{key: value for key, value in row.items() if isinstance(value, (int, float))},
        "name": name,
        "kind": kind,
        "worst_merchant": worst.get("merchant"),
        "worst_merchant_accuracy": worst.get("accuracy"),
        "cold": (row.get("cold") or {}).get(headline),
        "with_bm25": summed.get(headline),
        "with_bm25_interval": summed.get("half_width"),
        "downlink_bytes": sent.get("downlink_per_merchant_round"),
        "uplink_bytes": sent.get("uplink_per_merchant_round"),
        **{f"{key}_interval": value for key, value in intervals.items()},
        **{
            f"{name}{part}": found[key]
            for name, found in {**above, "with_bm25_above_server": summed.get("above_server")}.items()
            if found is not None
            for part, key in (("", "value"), ("_interval", "half_width"), ("_p", "p_adjusted"))
        },
    }


def _above(row: Mapping[Any, Any], name: str) -> dict[str, float | None] | None:
    """Return a difference to a control as ``headline.compared`` takes it; None if there is none."""
    if _value(row, name) is None:
        return None
    return {
        "value": _value(row, name),
        "half_width": _value(row, f"{name}_interval"),
        "p_adjusted": _value(row, f"{name}_p"),
    }


def _headline_first(summary: Mapping[str, Any]) -> list[str]:
    ordered = [
        summary["headline"],
        *(name for name in ("ndcg@10", "recall@20", "qini", "auc", "macro_f1", "accuracy", "mrr@10")),
    ]
    rows = [summary["teacher"], *summary["controls"].values(), *summary["federations"].values()]
    measured = {name for name in SCORES if any(row.get(name) is not None for row in rows)}
    return [name for name in dict.fromkeys(ordered) if name in measured]


def _value(row: Mapping[Any, Any], key: str) -> float | None:
    value = row[key]
    return None if pd.isna(value) else float(value)


def _with_interval(row: Mapping[Any, Any], key: str, written: Any) -> str:
    value, half = _value(row, key), _value(row, f"{key}_interval")
    return str(written(value)) + ("" if value is None or half is None else f" ± {written(half)}")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
