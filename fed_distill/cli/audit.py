"""``fed-distill audit``: attack a finished run and report the results beside its privacy guarantee.

Slow imports are inside the command.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

EXCEEDED = 1
"""Exit code if the white-box audit exceeds the guarantee."""


def audit(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run", show_default=False)],
    shadows: Annotated[int, typer.Option(min=4, help="shadow students of the strongest attack, an even number")] = 16,
    canaries: Annotated[
        int,
        typer.Option(
            min=20, help="texts included in the largest merchant's data, or not; the white box uses more of its own"
        ),
    ] = 400,
) -> None:
    """Attack a finished run: membership of its training data, and lower bounds on its ε.

    Exit code 1: the white-box audit exceeds the guarantee."""
    from fed_distill.audit.finished_run import AUDIT, audit_run
    from fed_distill.reporting.callbacks import CallbackList

    with CallbackList.from_names(["progress"]) as callbacks:
        found = audit_run(folder, callbacks, shadows, canaries)
    console = Console()
    console.print(_attacks(found))
    console.print(_bounds(found))
    console.print(f"audit: {escape(str(folder / AUDIT))}", soft_wrap=True)
    if found["white_box"] and found["white_box"]["exceeded"]:
        problem = "the white-box audit exceeds the guarantee, which one in ten correct runs does by chance"
        Console(stderr=True).print(f"error: {problem}: audit the same settings on another seed", soft_wrap=True)
        raise typer.Exit(EXCEEDED)


def _attacks(found: dict[str, Any]) -> Table:
    """Return a table of membership attacks on the final student."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("attack", "AUC", "95 % interval", "found at 1 % false positives", "AUC before training"):
        table.add_column(title, justify="left" if title == "attack" else "right")
    for name, attack in found["attacks"].items():
        low, high = attack["auc_interval"]
        rate = attack["tpr"]["0.01"]["value"]
        control = attack["control_auc"]
        table.add_row(
            name.replace("_", " "),
            f"{attack['auc']:.3f}",
            f"{low:.3f} – {high:.3f}",
            f"{100 * rate:.1f} %",
            "–" if control is None else f"{control:.3f}",
        )
    return table


def _bounds(found: dict[str, Any]) -> Table:
    """Return a table of the canaries' bounds on epsilon, and of errors of inferred label shares."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("canaries", "ε at least", "promised", "δ", "to one"):
        table.add_column(title, justify="left" if title in ("canaries", "to one") else "right")

    def add(name: str, least: float, promised: float | None, delta: float, unit: str) -> None:
        table.add_row(name, f"{least:.2f}", "–" if promised is None else f"{promised:.2f}", f"{delta:g}", unit)

    add("texts", found["epsilon_lower_bound"], found["epsilon_of_accountant"], found["delta"], "example")
    white_box = found["white_box"]
    for name, key in (("white box, Steinke", "steinke"), ("white box, f-DP", "f_dp")) if white_box else ():
        add(name, white_box[key]["epsilon"], white_box["promised"], white_box["delta"], white_box["unit"])
    shares = found["label_shares"]
    table.caption = (
        f"label shares are inferred from the first uplinks with error {shares['error']:.3f}, "
        f"without them with error {shares['baseline']:.3f}"
    )
    table.caption_justify = "left"
    return table
