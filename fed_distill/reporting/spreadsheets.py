"""Tables as CSV that a spreadsheet may open: no cell of them is taken for a formula.

Names of merchants and reasons of sites reach tables, and a cell that begins like a formula is run when it is opened
(OWASP, "CSV injection"). An apostrophe before it makes it a text; numbers stay numbers.
"""

import re

import pandas as pd

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE | re.ASCII)


def as_cell(value: object) -> object:
    """``value``; a text that a spreadsheet would take for a formula with an apostrophe before it."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV, header first, without its index."""
    texts = table.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    safe = table.assign(**{str(name): table[name].map(as_cell, na_action="ignore") for name in texts})
    return str(safe.rename(columns=as_cell).to_csv(index=False))
