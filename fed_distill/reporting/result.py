"""A finished run as a value: its summary and its tables as data frames."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fed_distill.reporting import tables
from fed_distill.reporting.store import REPORT, STUDENT, read_records, read_summary


class Result:
    """The run in ``folder``; everything is read from its files when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``."""
        return read_summary(self.folder)

    @property
    def comparison(self) -> pd.DataFrame:
        """Teacher, controls and federations, a row each."""
        return tables.comparison_table(self.summary)

    @property
    def rounds(self) -> pd.DataFrame:
        """Every round of every federation and seed, a row each."""
        return tables.rounds_table(read_records(self.folder))

    @property
    def merchants(self) -> pd.DataFrame:
        """Accuracy of every merchant under every control and federation."""
        return tables.merchants_table(self.summary)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT

    @property
    def student(self) -> Path:
        """Folder of the global student; ``fed_distill.models.load_model`` reads it."""
        return self.folder / STUDENT
