"""Write the findings of a study: tables, figures and a self-contained HTML page.

The input is the cells' summaries and scores by test unit, so that it can be written at any time, even with unfinished
cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fed_distill.config import CONTROLS
from fed_distill.evaluation.statistics import LEVELS
from fed_distill.reporting.glossary import GLOSSARY
from fed_distill.reporting.page import render_page
from fed_distill.reporting.spreadsheets import to_csv
from fed_distill.reporting.store import REPORT
from fed_distill.reporting.wording import ROW_NAMES
from fed_distill.storage.files import write_atomic
from fed_distill.sweeps import findings
from fed_distill.sweeps.cells import Cell
from fed_distill.sweeps.collect import BETWEEN, FAILED, FINISHED, combinations_table, results_table
from fed_distill.sweeps.curves import levels
from fed_distill.sweeps.gains import gains_cells
from fed_distill.sweeps.gallery import DASHED, Chart, draw_charts
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.learning import read_learning
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.promises import ASSUMPTIONS, promises
from fed_distill.sweeps.row_trials import TuningPlan
from fed_distill.sweeps.samples import OWN, UnitTable
from fed_distill.sweeps.table import summary_cells
from fed_distill.sweeps.template import STUDY_PAGE
from fed_distill.sweeps.tuning_table import TuningAccount

PARQUET, CSV, SUMMARY, TOML, FIGURES = "results.parquet", "results.csv", "summary.csv", "study.toml", "figures"
WORDS = (
    "Teacher", "Student", "Merchant", "Proxy set", "Federated learning", "Round", "Server alone", "Each merchant alone",
    "All data pooled", "FedAvg, no teacher", "nDCG@10", "AUC", "Accuracy", "Macro-F1", "Retention", "Gap closed",
    "Worst merchant", "Worst tenth", "p", "Seed", "± (95 % interval)", "Differential privacy",
)  # fmt: skip
MORE_WORDS = {
    "ε (epsilon)": "The strength of a privacy guarantee: how much may be learned about one unit of data. Smaller is "
    "more private; ∞ is no guarantee.",
    "δ (delta)": "The small probability that the guarantee fails; it should be far below one in the number of units.",
    "Attack AUC": "How well an attacker tells data that was used from data that was not; 0.5 is guessing.",
    "ε at least (text)": "What an attack has proved about a run: its true ε, for the audit's δ, cannot be smaller, "
    "with the audit's confidence.",
    "ε at least (Steinke), (f-DP)": "The same by an attacker who sees every release of the mechanism, with "
    "worst-case canaries; by two methods, the second of which is tighter.",
    "Pareto front": "The best tradeoffs: more quality, less ε or fewer bytes is possible only at the expense of "
    "another.",
    "Cell": "One combination of the study on one seed: one run.",
}


@dataclass(frozen=True)
class StudyFindings:
    """The written findings. complete: whether all cells and attacks are finished. table: ``summary_cells``. gains:
    ``gains_cells``. tuning: how the settings were chosen; None without trials."""

    report: Path
    complete: bool
    table: Sequence[Sequence[str]]
    gains: Sequence[Sequence[str]]
    tuning: TuningAccount | None = None

    def tables(self, axes: int) -> list[tuple[Sequence[Sequence[str]], int]]:
        """Return the non-empty tables of a study with ``axes`` axes, each with its number of name columns."""
        tuning = [(self.tuning.table, self.tuning.words)] if self.tuning is not None else []
        return [(self.table, axes), *([(self.gains, axes - 1)] if self.gains else []), *tuning]


def write_findings(
    study: Study, cells: Sequence[Cell], places: Places, command: str, plan: TuningPlan | None = None
) -> StudyFindings:
    """Write ``results.parquet``, ``results.csv``, ``summary.csv``, ``study.toml``, ``figures/`` and ``report.html``.

    :param command: command that continues the study, for the report
    :param plan: the trials of a study with a ``[tuning]`` table
    :raises CheckpointError: the summary of a finished run is damaged, or rows were not tried equally often
    """
    tuning = None if plan is None else TuningAccount.of(plan)
    places.folder.mkdir(parents=True, exist_ok=True)
    units = UnitTable.read(cells, places, study.base.controls)
    results = results_table(study, cells, places, units)
    combinations = combinations_table(study, results, units)
    write_atomic(places.folder / PARQUET, results.to_parquet(index=False))
    write_atomic(places.folder / CSV, to_csv(results))
    write_atomic(places.folder / SUMMARY, to_csv(combinations))
    write_atomic(places.folder / TOML, study.to_toml())
    learning = read_learning(study, results, combinations, places, DASHED)
    charts = draw_charts(results, combinations, learning, places.folder / FIGURES)
    table = summary_cells(study, results, combinations, units)
    gains = gains_cells(study, combinations)
    page = _render(study, cells, results, combinations, units, table, gains, charts, command, tuning)
    write_atomic(places.folder / REPORT, page)
    return StudyFindings(places.folder / REPORT, all(places.is_done(cell) for cell in cells), table, gains, tuning)


def _render(
    study: Study,
    cells: Sequence[Cell],
    results: pd.DataFrame,
    combinations: pd.DataFrame,
    units: UnitTable,
    table: Sequence[Sequence[str]],
    gains: Sequence[Sequence[str]],
    charts: Sequence[Chart],
    command: str,
    tuning: TuningAccount | None,
) -> str:
    wanted: dict[str, str] = {name: ROW_NAMES[name] for name in CONTROLS if name in study.base.controls}
    finished = int((results["status"] == FINISHED).sum())
    return render_page(
        STUDY_PAGE,
        source="study",
        glossary={**{word: GLOSSARY[word] for word in WORDS}, **MORE_WORDS},
        kind="study",
        name=study.name,
        command=command,
        toml=study.to_toml(),
        study=study,
        answer=findings.answer(combinations),
        sentences=findings.sentences(combinations),
        audit=findings.audit_sentence(results),
        unfinished=_unfinished(results),
        problems=_problems(cells, results),
        seeds=list(dict.fromkeys(cell.seed for cell in cells)),
        covers=_covers(combinations),
        without_units=_without_unit_scores(results, units),
        controls=list(wanted.values()),
        controls_shown=len(levels(results, wanted)),
        cells=len(cells),
        finished=finished,
        figures=charts,
        table=table,
        gains=gains,
        tuning=tuning,
        promises=promises(results),
        assumptions=ASSUMPTIONS,
        versions=[str(line) for line in results["run.versions"].dropna().unique()],
    )


def _covers(combinations: pd.DataFrame) -> str:
    """Return what the headline's intervals cover in all combinations, in words; "" if nothing."""
    known = [set(text.split(BETWEEN)) for text in combinations["covers"] if text]
    shared = set.intersection(*known) if known else set()
    return " and ".join(level for level in LEVELS if level in shared)


def _without_unit_scores(results: pd.DataFrame, units: UnitTable) -> str:
    """Say how many finished cells have no scores by unit, and what follows; "" if all have."""
    names = results[results["status"] == FINISHED]["fingerprint"]
    lacking = sum(OWN not in units.cells.get(name, {}) for name in names)
    if not lacking:
        return ""
    return (
        f"{lacking:,} of {len(names):,} finished cells have no scores by test unit (measured by an earlier version, or "
        "privacy.report_scores = false): intervals of their rows, and of differences to them, do not cover test data, "
        "and with one seed there are none."
    )


def _unfinished(results: pd.DataFrame) -> str:
    failed, all_others = int((results["status"] == FAILED).sum()), int((results["status"] != FINISHED).sum())
    missing = all_others - failed
    parts = [f"{failed:,} of {len(results):,} cells failed"] if failed else []
    parts += [f"{missing:,} of {len(results):,} cells have not been run"] if missing else []
    return f"{', and '.join(parts)}." if parts else ""


def _problems(cells: Sequence[Cell], results: pd.DataFrame) -> list[tuple[str, str]]:
    found = []
    for cell, row in zip(cells, results.to_dict("records"), strict=True):
        if row["status"] == FAILED:
            found.append((cell.title, str(row["reason"])))
        elif row["status"] != FINISHED:
            found.append((cell.title, str(row["status"])))
        elif isinstance(row["reason"], str):
            found.append((cell.title, f"finished, but the attack on it failed: {row['reason']}"))
    return found
