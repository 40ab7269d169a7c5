"""``fed-distill explain``: the contribution of each word to a student's score."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fed_distill.models.word_contributions import WordContribution

_BAR = 12


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run or of its student", show_default=False)],
    query: Annotated[str, typer.Option(help="the query", show_default=False)],
    title: Annotated[str, typer.Option(help="a product's title", show_default=False)],
) -> None:
    """Print how much each word of a query and a title adds to the student's score.

    The score is the expected gain.
    """
    from fed_distill.serving.explain import explain as contributions
    from fed_distill.serving.student import load_student

    student = load_student(run)
    if student.task.gains is None:
        raise ConfigError(
            "fed-distill explain requires a task of graded pairs, such as relevance; this student's task is "
            f"{student.task.name}"
        )
    found = contributions(student, query, title)
    words = (*found.query_words, *found.title_words)
    largest = max((abs(word.contribution) for word in words), default=0.0)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("text")
    table.add_column("word", overflow="fold")
    table.add_column("contribution", justify="right")
    table.add_column("")
    for name, rows in (("query", found.query_words), ("title", found.title_words)):
        _add_rows(table, name, rows, largest)
    console = Console()
    console.print(table)
    console.print(
        f"score {found.score:.4f} = {found.baseline:.4f} (without words) {sum(w.contribution for w in words):+.4f} "
        f"(words) {found.residual:+.1e} (numerical error)",
        soft_wrap=True,
        highlight=False,
    )


def _add_rows(table: Table, name: str, words: "Sequence[WordContribution]", largest: float) -> None:
    for word in words:
        length = round(_BAR * abs(word.contribution) / largest) if largest else 0
        bar = "█" * length
        less, more = (bar, "") if word.contribution < 0 else ("", bar)
        table.add_row(name, escape(word.text), f"{word.contribution:+.4f}", f"[red]{less:>{_BAR}}[/]│[green]{more}[/]")
