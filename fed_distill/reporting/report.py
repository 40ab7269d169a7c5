"""The report of a run: one HTML file that stands alone, made from the run's folder and nothing else.

Anyone can open it years later without a network: styles and charts are inline, and it can be written again
from ``experiment.toml``, ``metrics.jsonl`` and ``summary.json``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from fed_distill.errors import CheckpointError
from fed_distill.evaluation.metrics import interval
from fed_distill.privacy.disclosure import WHY, is_private
from fed_distill.reporting import wording
from fed_distill.reporting.charts import Line, Mark, Point, Spread, interval_plot, line_chart, scatter, stacked_dots
from fed_distill.reporting.glossary import GLOSSARY
from fed_distill.reporting.store import EXPERIMENT, METRICS, REPORT, read_records, read_summary
from fed_distill.reporting.template import REPORT_PAGE
from fed_distill.storage.files import write_atomic

Record = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a finished run's folder; CheckpointError if its summary or experiment is missing."""
    summary = read_summary(folder)
    try:
        experiment = (folder / EXPERIMENT).read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {folder / EXPERIMENT}: {error.strerror}") from error
    path = folder / REPORT
    write_atomic(path, render(summary, read_records(folder), experiment, str(folder)))
    return path


def render(summary: Record, records: Sequence[Record], experiment: str, folder: str) -> str:
    """The report's HTML. experiment: the run's TOML. folder: where the run is, for the command that repeats it."""
    metric = wording.METRIC_NAMES[summary["headline"]]
    return _page().render(
        summary=summary,
        main=summary["federations"][summary["federation"]],
        metric=metric,
        metrics=_table_metrics(summary),
        metric_names=wording.METRIC_NAMES,
        verdict=wording.verdict(summary),
        privacy=wording.privacy(summary),
        promises=wording.promises(summary),
        unprotected=WHY if is_private(summary["privacy"]) else "",
        poisoning=wording.poisoning(summary),
        audit_bound=wording.audit_bound(summary),
        rows=_rows(summary),
        overview=_overview(summary, metric),
        curves=_curves(summary, records, metric),
        spread=_spread(summary),
        winners=_winners(summary),
        traffic=_traffic(summary, metric),
        command=f"fed-distill run {folder}/{EXPERIMENT} --name {summary['name']}-again",
        experiment=experiment,
        metrics_file=METRICS,
        glossary=GLOSSARY,
    )


@cache
def _page() -> Template:
    """The page, compiled once for all reports of a process."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "plus_minus": wording.plus_minus,
        "percent": wording.percent,
        "size": wording.size,
        "duration": wording.duration,
        "count": wording.count,
        "words": lambda name: str(name).replace("_", " "),
    }
    return environment.from_string(REPORT_PAGE)


@dataclass(frozen=True)
class _Row:
    """One line of the comparison table: what is written, and how strongly."""

    name: str
    note: str
    kind: str
    values: Record
    half: Record
    federated: bool


def _rows(summary: Record) -> list[_Row]:
    rows = [
        _Row(
            "teacher",
            f"{wording.count(summary['teacher']['parameters'])} weights",
            "teacher",
            summary["teacher"],
            {},
            False,
        )
    ]
    for name, row in summary["controls"].items():
        half = summary["intervals"]["controls"][name]
        note = "control, not protected *" if row.get("protected") is False else "control"
        rows.append(_Row(wording.ROW_NAMES.get(name, name), note, "control", row, half, name == "fedavg"))
    for title, row in summary["federations"].items():
        kind = "main" if title == summary["federation"] else "federation"
        note = "this run's method" if kind == "main" else "compared"
        rows.append(_Row(title, note, kind, row, row["interval"], True))
    return rows


def _table_metrics(summary: Record) -> list[str]:
    ordered = dict.fromkeys([summary["headline"], "ndcg@10", "auc", "macro_f1", "accuracy"])
    rows = [summary["teacher"], *summary["controls"].values(), *summary["federations"].values()]
    return [name for name in ordered if any(row[name] is not None for row in rows)]


def _colors(summary: Record) -> dict[str, int]:
    """The run's own federation is colour 0, the others follow."""
    others = [title for title in summary["federations"] if title != summary["federation"]]
    return {summary["federation"]: 0, **{title: index for index, title in enumerate(others, start=1)}}


def _overview(summary: Record, metric: str) -> Markup:
    name, colors = summary["headline"], _colors(summary)
    marks = [
        Mark(row.name, row.values[name], row.half.get(name), colors.get(row.name) if row.federated else None)
        for row in _rows(summary)
        if row.values[name] is not None
    ]
    if not marks:
        return Markup("")
    marks.sort(key=lambda mark: -mark.value)
    return interval_plot(marks, f"{metric} on the test set", f"{metric} of the teacher and of every student")


def _curves(summary: Record, records: Sequence[Record], metric: str) -> Markup:
    """Headline on validation by round: mean and interval over the seeds, the controls as levels where measured."""
    name, colors = summary["headline"], _colors(summary)
    values: dict[str, dict[int, list[float]]] = {}
    for record in records:
        value = record.get("valid", {}).get(name)
        if value is not None:
            values.setdefault(record["federation"], {}).setdefault(record["round"], []).append(value)
    levels = [
        Mark(wording.ROW_NAMES.get(control, control), row["validation"][name])
        for control, row in summary["controls"].items()
        if control != "fedavg" and row["validation"] is not None and row["validation"][name] is not None
    ]
    extra = len(colors)
    lines = []
    for federation, by_round in values.items():
        label = federation if federation in colors else wording.ROW_NAMES.get(federation, federation)
        points = [(float(number), *interval(found)) for number, found in sorted(by_round.items())]
        lines.append(Line(label, points, colors.get(federation, extra)))
    if not lines:
        return Markup("")
    return line_chart(lines, levels, "round", f"{metric} on validation", f"{metric} on validation by round")


def _spread(summary: Record) -> Markup:
    stored = summary["by_merchant"]
    controls = [(wording.ROW_NAMES.get(name, name), stored["controls"][name], None) for name in stored["controls"]]
    colors = _colors(summary)
    federations = [(title, accuracies, colors[title]) for title, accuracies in stored["federations"].items()]
    spreads = [
        Spread(label, list(accuracies.values()), min(accuracies, key=lambda name: (accuracies[name], name)), color)
        for label, accuracies, color in [*controls, *federations]
        if accuracies
    ]
    if not spreads:
        return Markup("")
    return stacked_dots(spreads, "accuracy on the merchant's own test set", "Accuracy by merchant under each student")


def _winners(summary: Record) -> str:
    """For how many merchants the federated student is at least as good as the one that they could train alone."""
    stored = summary["by_merchant"]
    ours, alone = stored["federations"][summary["federation"]], stored["controls"].get("local", {})
    shared = [name for name in ours if name in alone]
    if not shared:
        return ""
    better = sum(ours[name] > alone[name] for name in shared)
    equal = sum(ours[name] == alone[name] for name in shared)
    return (
        f"The federated student is more accurate than a merchant's own for {better:,} of {len(shared):,} merchants, "
        f"equal for {equal:,} and less accurate for {len(shared) - better - equal:,}."
    )


def _traffic(summary: Record, metric: str) -> Markup:
    """What one merchant sends and receives in the whole run, against what it buys."""
    name, colors = summary["headline"], _colors(summary)
    points = [
        Point(row.name, _total_bytes(row.values) / 1e6, row.values[name], colors.get(row.name, len(colors)))
        for row in _rows(summary)
        if row.federated and row.values[name] is not None
    ]
    levels = [
        Mark(wording.ROW_NAMES[control], summary["controls"][control][name])
        for control in ("server", "pooled")
        if control in summary["controls"] and summary["controls"][control][name] is not None
    ]
    if not points:
        return Markup("")
    axis = "MB that a merchant sends and receives in the run"
    return scatter(points, levels, axis, f"{metric} on the test set", f"Bytes against {metric}")


def _total_bytes(row: Record) -> float:
    sent = row["bytes"]
    return float(row["rounds"] * (sent["uplink_per_merchant_round"] + sent["downlink_per_merchant_round"]))
