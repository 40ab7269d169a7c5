"""Print the result of a run to the terminal: the comparison as a table, and the path of the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.privacy.disclosure import WHY, is_private
from fed_distill.reporting.headline import headline
from fed_distill.reporting.store import REPORT, read_summary
from fed_distill.reporting.tables import STAR, comparison_cells
from fed_distill.reporting.wording import is_tiny, weak_teacher

_DISPENSABLE = (
    "accuracy", "above fedavg", "worst tenth", "macro-F1", "merchants: mean", "worst", "gap closed in AUC", "AUC",
    "time", "cold start", "gap closed", "retention", "up / down a round", "above server",
)  # fmt: skip
"""Columns that a narrow terminal omits, in this order; the headline metric is never omitted."""
TINY_RESULTS = "a tiny version for testing the file: its results are meaningless"


def show(folder: Path, console: Console | None = None) -> None:
    """Print the comparison of the finished run in ``folder``, a warning of a weak teacher, what the teacher and
    federation add, and the report's path; of a tiny run, that its results mean nothing, the comparison and the path."""
    console = console or Console()
    summary = read_summary(folder)
    tiny = is_tiny(summary)
    if tiny:
        console.print(TINY_RESULTS)
    table, left_out = _comparison(summary, console.width)
    console.print(table)
    if left_out:
        more = f"{left_out} more columns: in the report, and by fed-distill report {folder} --markdown"
        console.print(escape(more), highlight=False, soft_wrap=True)
    if not tiny and (warning := weak_teacher(summary)):
        console.print(escape(f"warning: {warning}"), highlight=False, soft_wrap=True)
    if not tiny and (adds := headline(summary)):
        console.print(adds, highlight=False)
    if is_private(summary["privacy"]):
        console.print(f"* {WHY}", highlight=False)
    console.print(f"report: {escape(str(folder / REPORT))}", soft_wrap=True)


def _comparison(summary: Mapping[str, Any], width: int) -> tuple[Table, int]:
    """Return the comparison with as many columns as fit, and the number of those that are left out."""
    lines = comparison_cells(summary)
    shown = list(range(len(lines[0])))
    for title in _DISPENSABLE:
        if sum(max(len(line[place]) for line in lines) + 2 for place in shown) <= width:
            break
        shown = [place for place in shown if lines[0][place].removesuffix(STAR) != title or place == 1]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for place in shown:
        table.add_column(lines[0][place], justify="left" if place == 0 else "right", no_wrap=True)
    for cells in lines[1:]:
        table.add_row(*(escape(cells[place]) for place in shown))
    return table, len(lines[0]) - len(shown)
