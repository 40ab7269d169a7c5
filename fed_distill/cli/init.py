"""``fed-distill init``: a first experiment for a table of one's own.

Slow imports are inside the command.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from fed_distill.data.recognize import Recognized

_SHOWN = 8


def init(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="labelled texts or pairs: CSV, TSV, Parquet, JSON lines")
    ],
    out: Annotated[Path | None, typer.Option(help="file of the experiment instead of NAME.toml")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file if it exists")] = False,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the query, review or title")] = None,
    pair: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the second text, the product")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the label")] = None,
    merchant: Annotated[str | None, typer.Option(metavar="COLUMN", help="column of the row's owner")] = None,
    task: Annotated[str | None, typer.Option(help="relevance, recommend, matching, sentiment, category or faq")] = None,
    meaning: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=CLASS", help="class of a label, such as 3=exact; repeatable")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="encoding of a file that is in neither UTF-8 nor UTF-16")] = None,
) -> None:
    """Look at a table, say what it holds, and write a commented experiment that runs.

    Columns, task and labels are recognized; options settle what the file does not.
    """
    from fed_distill.data.recognize import PAIRED, SINGLE, recognize
    from fed_distill.data.table_file import check_file, format_of
    from fed_distill.data.text_format import encoding_of, format_words, guessed_encoding
    from fed_distill.errors import DataError
    from fed_distill.experiment.starter import starter, table_name
    from fed_distill.storage.files import write_atomic

    if task is not None and task not in (*PAIRED, *SINGLE):
        raise ConfigError(f"--task {task}: a table can have {', '.join((*PAIRED, *SINGLE))}")
    target = out or Path(f"{table_name(table)}.toml")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists: replace it with --force, or name another file with --out")
    check_file(table)
    format_text, doubts, named = format_of(table).removeprefix("."), [], encoding or ""
    if format_text != "parquet":
        try:
            used = encoding_of(table, named)
        except DataError:
            if named:
                raise
            used = named = guessed_encoding(table)
            doubts.append(
                f"the encoding is taken for {named}, as no mark in the file names it; otherwise: --encoding NAME"
            )
        format_text = f"{format_text}, {format_words(table, used)}"
    given = {"text": text, "pair": pair, "label": label, "merchant": merchant}
    chosen = {role: column for role, column in given.items() if column is not None}
    found = recognize(table, chosen, task or "", named, meaning or ())
    found = replace(found, doubts=(*doubts, *found.doubts))
    content, notes = starter(found, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, content)
    _say(found, format_text, notes, target)


def _say(found: "Recognized", format_text: str, notes: list[str], target: Path) -> None:
    from fed_distill.text.words import one_line

    console = Console()

    def line(name: str, value: str) -> None:
        console.print(f"{name:<10}{escape(one_line(value))}", soft_wrap=True, highlight=False)

    line("table", f"{found.path}: {format_text}, {found.rows:,} rows")
    line("task", found.task)
    for role, column in found.columns.items():
        line(role, f"column {column!r}" + (f", {len(found.sizes):,} of them" if role == "merchant" else ""))
    counts = sorted(found.found.items(), key=lambda item: -item[1])
    shown = [
        f"{label or 'no label'}{f' = {found.labels[label]}' if label in found.labels else ''} ({count:,})"
        for label, count in counts
        if label not in found.dropped
    ]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    line("labels", ", ".join(shown[:_SHOWN]) + more)
    if found.dropped:
        line("dropped", ", ".join(f"{label or 'no label'} ({count:,} rows)" for label, count in found.dropped.items()))
    for title, lines in (("not certain", found.doubts), ("note", notes)):
        for one in lines:
            console.print(f"[yellow]{title}:[/] {escape(one_line(one))}", soft_wrap=True, highlight=False)
    file = one_line(str(target))
    console.print(escape(f"written: {file}; run it: fed-distill run {shlex.quote(file)}"), soft_wrap=True)
