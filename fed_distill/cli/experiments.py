"""``fed-distill experiments``: list and copy the experiments that the package contains."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

experiments_app = typer.Typer(help="List and copy the experiments of the package.", no_args_is_help=True)


@experiments_app.command("ls", epilog="Example: fed-distill experiments ls")
def list_experiments() -> None:
    """List the experiments, studies and tunings of the package, with the command that runs each."""
    from fed_distill.experiment.shipped import experiments

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("name", "command", "about"):
        table.add_column(title, overflow="fold")
    for one in experiments():
        table.add_row(escape(one.name), one.command, escape(one.summary))
    Console().print(table)


@experiments_app.command("cp", epilog="Example: fed-distill experiments cp quickstart")
def copy_experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name in the list", show_default=False)],
    to: Annotated[Path, typer.Option(help="folder of the copy")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
) -> None:
    """Copy an experiment, and the files that it is based on, into a folder."""
    from fed_distill.experiment.shipped import copy, find

    found = find(name)
    paths = copy(found, to, force)
    console = Console()
    for path in paths:
        console.print(f"copied: {escape(str(path))}", soft_wrap=True)
    console.print(f"run it: fed-distill {found.command} {escape(str(paths[0]))}", soft_wrap=True)
