"""A finished run: its summary, and its tables as data frames."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fed_distill.reporting import tables
from fed_distill.reporting.store import REPORT, STUDENT, read_records, read_summary


class Result:
    """The run in ``folder``; files are read on access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of ``summary.json``."""
        return read_summary(self.folder)

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
