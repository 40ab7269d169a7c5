"""Print the result of a run to the terminal: the comparison as a table, and the path of the report."""

import re
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from fed_distill.privacy.disclosure import WHY, is_private
from fed_distill.reporting.headline import headline
from fed_distill.reporting.store import REPORT, read_summary
from fed_distill.reporting.tables import STAR, comparison_cells
from fed_distill.reporting.wording import is_tiny, weak_teacher

_DISPENSABLE = (
    "accuracy", "above fedavg", "worst tenth", "macro-F1", "merchants: mean", "worst", "gap closed in AUC", "AUC",
    "time", "with BM25 above server", "with BM25", "cold start", "gap closed", "retention",
    "up / down a round", "above server",
)  # fmt: skip
"""Columns that a narrow terminal omits, in this order."""
_GAP = "  "
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
TINY_RESULTS = "a tiny version for testing the file: its results are meaningless"


def show(folder: Path, console: Console | None = None) -> None:
    """Print the comparison of the finished run in ``folder``, a warning of a weak teacher, what the teacher and
    federation add, and the report's path; of a tiny run, that its results mean nothing, the comparison and the path."""
    console = console or Console()
    summary = read_summary(folder)
    tiny = is_tiny(summary)
    if tiny:
        console.print(TINY_RESULTS)
    where = f"in the report, and by fed-distill report {folder} --markdown"
    lines = comparison_cells(summary)
    main = lines[0][1].removesuffix(STAR)  # the headline metric
    print_table(lines, 1, [title for title in _DISPENSABLE if title != main], where, console)
    if not tiny and (warning := weak_teacher(summary)):
        console.print(escape(f"warning: {warning}"), highlight=False, soft_wrap=True)
    if not tiny and (adds := headline(summary)):
        console.print(adds, highlight=False)
    if is_private(summary["privacy"]):
        console.print(f"* {WHY}", highlight=False)
    console.print(f"report: {escape(str(folder / REPORT))}", soft_wrap=True)


def print_table(
    lines: Sequence[Sequence[str]], labels: int, dispensable: Sequence[str], where: str, console: Console
) -> None:
    """Print a table with as many columns as a terminal has room for, and with all of them elsewhere.

    No cell is ever cut: what remains too wide is wrapped by the terminal.

    :param lines: titles of columns, then rows
    :param labels: number of first columns, which name a row and are always shown
    :param dispensable: titles of columns that a narrow terminal omits, in this order
    :param where: where all columns are, for the line that says how many are omitted
    """
    lines = [[_CONTROLS.sub(" ", cell) for cell in line] for line in lines]
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(lines[0]))]
    shown = list(range(len(widths)))
    for title in dispensable:
        if not console.is_terminal or sum(widths[place] + len(_GAP) for place in shown) <= console.width:
            break
        shown = [place for place in shown if place < labels or lines[0][place].removesuffix(STAR) != title]
    for number, line in enumerate(lines):
        cells = [_padded(line[place], widths[place], place < labels) for place in shown]
        text = Text(_GAP.join(cells).rstrip(), style="" if number else "bold")
        console.print(text, highlight=False, soft_wrap=True)
    if omitted := len(widths) - len(shown):
        more = "1 more column" if omitted == 1 else f"{omitted} more columns"
        console.print(f"{more}: {escape(where)}", highlight=False, soft_wrap=True)


def _padded(cell: str, width: int, left: bool) -> str:
    space = " " * (width - cell_len(cell))
    return cell + space if left else space + cell
