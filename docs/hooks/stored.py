"""Tables of results as files with command, commit and date. Pages have copies of their rows, which the build checks.

``fed-distill study FILE --markdown | python -m docs.hooks.stored NAME --command "fed-distill study FILE"`` stores a
table and replaces its copy in the README and in pages, where they have all of its columns.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from docs.hooks.markdown import code

DOCS = Path(__file__).resolve().parents[1]
FOLDER = DOCS / "results" / "stored"
OTHERS = {"how-to/scaling.md"}
"""Pages whose marked tables come from another file: ``experiments/benchmarks/scaling.json``."""
_MARKED = re.compile(r"<!-- (?P<name>[a-z-]+) -->\n\n?(?P<table>(?:\|.*\n)+)")


@dataclass(frozen=True)
class StoredTable:
    """A table of results.

    :param command: what prints it
    :param commit: commit that recorded it
    :param date: day on which it was recorded, YYYY-MM-DD
    """

    command: str
    commit: str
    date: str
    columns: list[str]
    rows: list[list[str]]

    def problems(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Return what a copy, which may leave out rows and columns, has and this table does not."""
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            return [f"there is no column {unknown[0]!r}"]
        whole = list(columns) == self.columns  # whose names may recur
        places = range(len(columns)) if whole else [self.columns.index(name) for name in columns]
        own = [[row[place] for place in places] for row in self.rows]
        return [f"there is no row {' | '.join(row)}" for row in rows if list(row) not in own]

    @property
    def caption(self) -> str:
        """Where the numbers come from, as Markdown."""
        return f"*Printed by {code(self.command)}; recorded in commit {code(self.commit)}, {self.date}.*"


def read(name: str) -> StoredTable:
    """Read a stored table; FileNotFoundError without one of this name."""
    return StoredTable(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def parse(table: str) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a Markdown table. Bold is for emphasis and not part of a cell."""
    lines = [[cell.strip().strip("*") for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    return lines[0], lines[2:]


def marked(text: str) -> Iterator[re.Match[str]]:
    """Yield the tables of a page that follow a marker ``<!-- name -->``."""
    return _MARKED.finditer(text)


def problems(text: str) -> list[str]:
    """Return the differences of a page's tables from those that are stored."""
    found = []
    for one in marked(text):
        if not (FOLDER / f"{one['name']}.json").is_file():
            found.append(f"table {one['name']} is not stored: docs/results/stored/{one['name']}.json")
        else:
            found += [f"table {one['name']}: {problem}" for problem in read(one["name"]).problems(*parse(one["table"]))]
    return found


def captioned(text: str) -> str:
    """Return a page with the origin of each stored table below it."""
    return _MARKED.sub(lambda one: f"{one[0]}\n{read(one['name']).caption}\n", text)


def replaced(text: str, name: str, table: str) -> str:
    """Return a page with ``table`` in place of the table called ``name``, if the page has all of its columns."""

    def new(one: re.Match[str]) -> str:
        whole = one["name"] == name and parse(one["table"])[0] == parse(table)[0]
        return f"<!-- {name} -->\n{table}" if whole else one[0]

    return _MARKED.sub(new, text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Store the table that is read from standard input, and replace it in the README and in pages."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name", help="name of the table's file and marker")
    parser.add_argument("--command", required=True, help="what prints the table")
    given = parser.parse_args(arguments)
    table = "".join(line for line in sys.stdin.read().splitlines(keepends=True) if line.startswith("|"))
    columns, rows = parse(table)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=DOCS, capture_output=True, text=True, check=True
    )
    stored = StoredTable(given.command, commit.stdout.strip(), f"{datetime.now(UTC):%Y-%m-%d}", columns, rows)
    text = json.dumps(asdict(stored), ensure_ascii=False, indent=1)
    (FOLDER / f"{given.name}.json").write_text(text + "\n", encoding="utf-8")
    for page in (*DOCS.parent.glob("README.md"), *DOCS.glob("**/*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := replaced(before, given.name, table)) != before:
            page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
