"""``fed-distill compare``: settings and scores of two runs, side by side.

Slow imports are inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fed_distill.reporting.run_comparison import ComparedScore

Run = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run", show_default=False)]


def compare(first: Run, second: Run) -> None:
    """Print the settings in which two runs differ, and their scores, with paired 95 % intervals where both had the
    same test data."""
    from fed_distill.reporting.run_comparison import compare_runs, shown

    found, console = compare_runs(first, second), Console()
    names = (escape(str(first)), escape(str(second)))
    settings = Table(title="settings that differ", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for title in ("key", *names):
        settings.add_column(title, overflow="fold")
    for key, (ours, theirs) in found.settings.items():
        settings.add_row(escape(key), escape(shown(ours)), escape(shown(theirs)))
    if found.settings:
        console.print(settings)
    else:
        console.print("the settings are equal")
    scores = Table(title="scores", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for title in ("", "metric"):
        scores.add_column(title, overflow="fold")
    for title in (*names, "second − first"):
        scores.add_column(title, justify="right", overflow="fold")
    for one in found.scores:
        scores.add_row(*map(escape, _cells(one)))
    console.print(scores)
    if found.unpaired:
        console.print(f"no paired intervals: {escape(found.unpaired)}", soft_wrap=True)


def _cells(one: "ComparedScore") -> tuple[str, ...]:
    from fed_distill.reporting.wording import METRIC_NAMES, UNKNOWN

    values = tuple(UNKNOWN if value is None else f"{value:.6g}" for value in (one.ours, one.theirs))
    if one.difference is not None:
        half = one.difference.half_width
        change = f"{one.difference.value:+.4f}" + (f" ± {half:.4f}" if half is not None else "")
    elif one.ours is not None and one.theirs is not None:
        change = f"{one.theirs - one.ours:+.6g}"
    else:
        change = UNKNOWN
    return one.row, METRIC_NAMES.get(one.metric, one.metric.replace("_", " ")), *values, change
