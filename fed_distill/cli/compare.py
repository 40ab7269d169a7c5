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
    from fed_distill.reporting.terminal import print_table

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
    console.print("scores", style="italic")
    lines = [["", "metric", str(first), str(second), "second − first"], *map(_cells, found.scores)]
    print_table(lines, 2, (), "", console)
    if found.unpaired:
        console.print(f"no paired intervals: {escape(found.unpaired)}", soft_wrap=True)


def _cells(one: "ComparedScore") -> tuple[str, ...]:
    from fed_distill.reporting.wording import METRIC_NAMES, UNKNOWN, number, signed

    digits = 0 if one.metric.endswith("_bytes") else 4
    if one.difference is not None:
        half = one.difference.half_width
        change = signed(one.difference.value) + (f" ± {number(half)}" if half is not None else "")
    else:
        change = UNKNOWN if one.ours is None or one.theirs is None else signed(one.theirs - one.ours, digits)
    metric = METRIC_NAMES.get(one.metric, one.metric.replace("_", " "))
    return one.row, metric, number(one.ours, digits), number(one.theirs, digits), change
