"""Markdown of tables, headings and code."""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown in one line."""
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(cell(one) for one in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Return a text in one line, whose bars do not end the cell."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """Return a text as code; an empty text stays empty."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Return a docstring's or description's text: reStructuredText's ``code`` as Markdown's, tags escaped."""
    parts = text.replace("``", "`").split("`")
    return "`".join(
        part if place % 2 else part.replace("<", "&lt;").replace("[", "\\[") for place, part in enumerate(parts)
    )
