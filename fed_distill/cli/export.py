"""``fed-distill export``: write a trained student as ONNX graphs in several variants, and compare them.

Slow imports are inside the command.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fed_distill.serving.exported_folder import ExportDescription, Measured


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="folder of a finished run, or of a student", show_default=False)
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="new folder of the export", show_default=False)],
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="float32, float16, int8, int4 and pruned (both of students with towers), separated by commas; "
            "float32 is always written. Default: all",
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality/--no-quality",
            help="measure each variant on the run's test data, and describe these data, with which traffic is compared",
        ),
    ] = True,
    web: Annotated[
        str | None,
        typer.Option(
            metavar="VARIANT",
            help="also write the folder web/ for JavaScript (of two-tower and static students), with int8 or float32 "
            "weights",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a student as ONNX graphs that run without torch, and show what each variant costs and gives."""
    from fed_distill.serving.export import export_student

    names = None if variants is None else [name.strip() for name in variants.split(",") if name.strip()]
    found = export_student(run, to, names, quality, web)
    console = Console()
    console.print(_table(found))
    console.print(f"export: {escape(str(to))}", soft_wrap=True)


def _table(found: "ExportDescription") -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("variant", "MB", "of trained", "p50 ms", "p99 ms", "max difference", found.metric):
        table.add_column(title, justify="left" if title == "variant" else "right")
    whole = found.trained
    rows = [] if whole is None else [("trained (torch)", whole.bytes, whole.measured)]
    for name, size, measured in (*rows, *((name, one.size, one.measured) for name, one in found.variants.items())):
        share = "–" if whole is None else f"{100 * size / whole.bytes:.0f} %"
        table.add_row(name, f"{size / 1e6:.2f}", share, *_cells(measured))
    table.caption = "ms: time on one core for a query with 100 titles; max difference: of a class probability"
    table.caption_justify = "left"
    return table


def _cells(measured: "Measured | None") -> list[str]:
    if measured is None:
        return ["–"] * 4
    quality = "–" if measured.quality is None else f"{measured.quality:.4f}"
    return [f"{measured.p50_ms:.2f}", f"{measured.p99_ms:.2f}", f"{measured.difference:.1e}", quality]
