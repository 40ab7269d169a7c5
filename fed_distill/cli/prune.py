"""``fed-distill prune``: make a smaller student of a transformer student, and compare both.

Slow imports are inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fed_distill.reporting.pruned_card import Pruning


def prune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run", show_default=False)],
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="new folder, which is then used like a run's", show_default=False),
    ],
    layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="layers to keep, evenly spaced from the first to the last. Default: all", show_default=False
        ),
    ] = None,
    neurons: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="neurons to keep of each layer's feed-forward networks, the most important. Default: all",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        float, typer.Option(help="epochs of distillation on the proxy set, from the student before pruning")
    ] = 3.0,
) -> None:
    """Make a smaller student of one of the BERT family: remove layers and neurons, distil what is left from the student
    before pruning, and show what it costs and gives.

    RUN is not changed, and DIR is written whole or not at all. Test data are not used.
    """
    from fed_distill.reporting.callbacks import CallbackList
    from fed_distill.serving.prune import prune_student

    with CallbackList.from_names(["progress"]) as callbacks:
        found = prune_student(run, to, layers, neurons, epochs, callbacks)
    console = Console()
    console.print(_table(found))
    console.print(f"student: {escape(str(to))}", soft_wrap=True)


def _table(found: "Pruning") -> Table:
    from fed_distill.reporting.pruned_card import cells

    header, *rows = cells(found)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, justify="left" if title == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    table.caption = f"ms: time on one core for a query with 100 titles; {header[-1]}: on {found.measured_on}"
    table.caption_justify = "left"
    return table
