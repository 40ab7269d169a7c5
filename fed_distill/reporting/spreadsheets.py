"""CSV tables that are safe to open in a spreadsheet: no cell is interpreted as a formula.

Tables contain names of merchants and messages of sites, and a spreadsheet executes a cell that begins like a formula
(OWASP, "CSV injection"). Such texts get a leading apostrophe; numbers are unchanged.
"""

import re

import pandas as pd

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE | re.ASCII)


def as_cell(value: object) -> object:
    """Return ``value``; add a leading apostrophe to a text that a spreadsheet would execute as a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def to_csv(table: pd.DataFrame) -> str:
    """Serialize a table as CSV with a header and without its index."""
    texts = table.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    safe = table.assign(**{str(name): table[name].map(as_cell, na_action="ignore") for name in texts})
    return str(safe.rename(columns=as_cell).to_csv(index=False))
