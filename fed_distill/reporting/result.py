"""A finished run: its summary, and its tables as data frames."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from fed_distill.errors import CheckpointError
from fed_distill.reporting import tables
from fed_distill.reporting.store import EXPERIMENT, REPORT, STUDENT, SUMMARY, read_records, read_summary


class Result:
    """The run in ``folder``; its files are read on access. A notebook shows it as the table of its comparison."""

    def __init__(self, folder: Path | str) -> None:
        """Open the run in ``folder``.

        :raises CheckpointError: it is not the folder of a run
        """
        self.folder = Path(folder)
        if not (self.folder / EXPERIMENT).is_file() and not (self.folder / SUMMARY).is_file():
            raise CheckpointError(f"{self.folder} has no {SUMMARY} and no {EXPERIMENT}: it is not the folder of a run")

    def __repr__(self) -> str:
        return f"Result({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return the comparison as an HTML table, for notebooks; raise CheckpointError if the run is not finished."""
        header, *rows = tables.comparison_cells(self.summary)
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        title = f"{escape(self.summary['name'])}: {escape(self.summary['task'])} on {escape(self.summary['dataset'])}"
        return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return read_summary(self.folder, ("name", "task", "dataset", "headline", "federations"))

    @property
    def comparison(self) -> pd.DataFrame:
        """Teacher, controls and federations, one row each."""
        return tables.comparison_table(self.summary)

    @property
    def rounds(self) -> pd.DataFrame:
        """All rounds of all federations and seeds, one row each."""
        return tables.rounds_table(read_records(self.folder))

    @property
    def merchants(self) -> pd.DataFrame:
        """Accuracy of every merchant for every control and federation."""
        return tables.merchants_table(self.summary)

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.folder / REPORT

    @property
    def student(self) -> Path:
        """Folder of the global student, for ``fed_distill.load_student``."""
        return self.folder / STUDENT
