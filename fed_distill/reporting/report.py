"""The report of a run: a self-contained HTML file, generated from the run's folder.

Styles and charts are inline, so that it can be opened without a network. Its inputs are ``experiment.toml``,
``metrics.jsonl``, ``summary.json`` and, if it has one, ``disagreements.json``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_distill.errors import CheckpointError
from fed_distill.evaluation.cold_start import ENOUGH
from fed_distill.privacy.disclosure import WHY, is_private
from fed_distill.reporting import headline, wording
from fed_distill.reporting.account_words import in_words
from fed_distill.reporting.differences import REFERENCES
from fed_distill.reporting.disagreements import Disagreements, read_disagreements
from fed_distill.reporting.glossary import GLOSSARY
from fed_distill.reporting.page import render_page
from fed_distill.reporting.store import (
    CLASSES,
    EXPERIMENT,
    METRICS,
    REPORT,
    STUDENT,
    SUMMARY,
    read_records,
    read_summary,
)
from fed_distill.reporting.template import REPORT_PAGE
from fed_distill.storage.files import write_atomic

if TYPE_CHECKING:
    from fed_distill.reporting.overlap_chart import PropensityHistogram

Record = Mapping[str, Any]
FILES = {
    SUMMARY: "all numbers of this page",
    METRICS: "a line for each round",
    EXPERIMENT: "settings, defaults included",
    CLASSES: "precision and recall of each class",
    STUDENT: "the student and its model card",
}
"""What else is in the folder of a run, for readers of its report."""


def write_report(folder: Path, summary: Record | None = None) -> Path:
    """Write ``report.html`` of a run; raise CheckpointError if its summary or experiment is missing.

    :param summary: of a run that has none yet; None: that in its folder
    """
    summary = read_summary(folder) if summary is None else summary
    try:
        experiment = (folder / EXPERIMENT).read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {folder / EXPERIMENT}: {error.strerror}") from error
    path = folder / REPORT
    from fed_distill.reporting.overlap_chart import read_overlap  # imports matplotlib, which is slow

    page = render(
        summary, read_records(folder), experiment, str(folder), read_disagreements(folder), read_overlap(folder)
    )
    write_atomic(path, page)
    return path


def render(
    summary: Record,
    records: Sequence[Record],
    experiment: str,
    folder: str,
    disagreeing: Disagreements | None = None,
    arms: "PropensityHistogram | None" = None,
) -> str:
    """Render the report.

    :param experiment: the run's TOML
    :param folder: the run's folder, for the command that repeats it
    :param disagreeing: examples on which teacher and student disagree, if the run lists any
    :param arms: customers of a campaign by propensity, for marketing-effect
    """
    from fed_distill.reporting import overlap_chart, run_charts  # they import matplotlib, which is slow

    metric = wording.METRIC_NAMES[summary["headline"]]
    rows, series = _rows(summary), _series(summary)
    return render_page(
        REPORT_PAGE,
        source="experiment",
        glossary=GLOSSARY,
        kind="run",
        name=summary["name"],
        command=f"fed-distill run {folder}/{EXPERIMENT} --name {summary['name']}-again",
        toml=experiment,
        summary=summary,
        main=summary["federations"][summary["federation"]],
        metric=metric,
        metrics=_table_metrics(summary),
        metric_names=wording.METRIC_NAMES,
        verdict=wording.verdict(summary),
        headline=headline.headline(summary),
        adds={
            headline.ADDED[name]: found
            for name, found in summary["adds"].items()
            if found is not None or name != "adaptation"  # most runs have none
        },
        bases=headline.BASES,
        several=len(summary["seeds"]) > 1,
        corrected=_has_p_values(summary),
        covers=headline.covers(summary),
        enough=ENOUGH,
        references={name: wording.ROW_NAMES[name] for name in REFERENCES},
        compared=headline.compared,
        privacy=wording.privacy(summary),
        promises=wording.promises(summary),
        unprotected=WHY if is_private(summary["privacy"]) else "",
        byzantine=wording.byzantine(summary),
        audit_bound=wording.audit_bound(summary),
        dataset=wording.dataset_name(summary),
        data=in_words(summary["data"]),
        rows=rows,
        overview=run_charts.overview(_scores(summary, rows, series), metric),
        curves=run_charts.learning(summary, records, metric, series),
        spread=run_charts.merchants(summary, series),
        winners=_winners(summary),
        is_tiny=wording.is_tiny(summary),
        weak_teacher=wording.weak_teacher(summary),
        classes=_classes(summary),
        files=FILES,
        disagreeing=disagreeing,
        arms=arms,
        overlap=overlap_chart.overlap(arms),
        traffic=run_charts.traffic(
            summary, [(row.name, row.arm, row.values) for row in rows if row.arm], metric, series
        ),
    )


@dataclass(frozen=True)
class _Class:
    """How one class is predicted: its name, number of test examples, precision, recall and F1 (None where it has no
    prediction or example), and the number of examples by predicted class."""

    name: str
    examples: int
    precision: float | None
    recall: float | None
    f1: float
    predicted: Sequence[int]


def _classes(summary: Record) -> list[_Class]:
    """Return the classes of the task with what the student predicts; empty for a run of an earlier version."""
    counts = np.array(summary.get("confusion") or [], dtype=np.int64)
    if not counts.size:
        return []
    right, examples, predictions = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    return [
        _Class(
            name,
            int(examples[at]),
            right[at] / predictions[at] if predictions[at] else None,
            right[at] / examples[at] if examples[at] else None,
            2 * right[at] / max(examples[at] + predictions[at], 1),
            counts[at].tolist(),
        )
        for at, name in enumerate(summary["classes"])
    ]


@dataclass(frozen=True)
class _Row:
    """One line of the comparison table. arm: name of its rounds, of a row with rounds."""

    name: str
    note: str
    kind: str
    values: Record
    half: Record
    arm: str | None = None


def _rows(summary: Record) -> list[_Row]:
    rows = [
        _Row(
            "teacher",
            f"{wording.count(summary['teacher']['parameters'])} weights",
            "teacher",
            summary["teacher"],
            {},
        )
    ]
    for name, row in summary["controls"].items():
        half = summary["intervals"]["controls"][name]
        note = "control, not protected *" if row.get("protected") is False else "control"
        rows.append(
            _Row(wording.ROW_NAMES.get(name, name), note, "control", row, half, name if name == "fedavg" else None)
        )
    for title, row in summary["federations"].items():
        kind = "main" if title == summary["federation"] else "federation"
        note = "this run's method" if kind == "main" else "compared"
        rows.append(_Row(title, note, kind, row, row["interval"], title))
    return rows


def _has_p_values(summary: Record) -> bool:
    """Whether the table has a p-value: it has none without references, or with one seed and no scores by unit."""
    rows = [*summary["controls"].values(), *summary["federations"].values()]
    found = [one for row in rows for one in row["above"].values() if one is not None]
    return any(one["p_adjusted"] is not None for one in found)


def _table_metrics(summary: Record) -> list[str]:
    ordered = dict.fromkeys([summary["headline"], "ndcg@10", "recall@20", "auc", "macro_f1", "accuracy"])
    rows = [summary["teacher"], *summary["controls"].values(), *summary["federations"].values()]
    return [name for name in ordered if any(row.get(name) is not None for row in rows)]


def _series(summary: Record) -> dict[str, int]:
    """Return the number of each federation in charts; the run's own is 0."""
    others = [title for title in summary["federations"] if title != summary["federation"]]
    return {summary["federation"]: 0, **{title: index for index, title in enumerate(others, start=1)}}


def _scores(
    summary: Record, rows: Sequence[_Row], series: Mapping[str, int]
) -> list[tuple[str, float, float | None, int | None]]:
    """Return name, headline score, half-width of its interval and series number of all measured rows."""
    name = summary["headline"]
    return [
        (row.name, row.values[name], row.half.get(name), series.get(row.name) if row.arm else None)
        for row in rows
        if row.values[name] is not None
    ]


def _winners(summary: Record) -> str:
    """Describe for how many merchants the federated student is better than, equal to and worse than their own."""
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
