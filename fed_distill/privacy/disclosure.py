"""What the report of a private run omits or marks, so that it reveals no more than the guarantee covers.

Exact sizes and class counts of merchants' tables are omitted, because a single example changes them. Rows of a
comparison that were computed without privacy, and merchants' own test scores, are marked as not covered.
"""

from collections.abc import Mapping
from typing import Any

from fed_distill.config import is_protected

UNPROTECTED_CONTROLS = ("local", "pooled", "fedavg", "popularity", "repeat", "item-knn")
"""Controls made of merchants' examples without privacy; the control ``server`` uses the server's data only."""
WHY = (
    "Not covered by ε: a row that was trained on merchants' data without privacy, or a column with exact scores on "
    "merchants' own test examples. A simulation may compute both, because it has all data; a real site rejects them "
    "unless its own policy allows them."
)
"""Explanation shown wherever a row or column is marked."""
_PLAIN = ("dataset", "task", "source", "limited_to", "proxy_set")
_COUNTED = {
    "merchants": ("all", "public", "clients"),
    "rows": ("public",),
    "examples": ("public", "public_valid", "proxy"),
    "classes": ("public", "public_valid"),
}
"""Entries of the dataset account that are reported: the server's tables, and the numbers of merchants."""
_DIGITS = 2


def is_private(privacy: Mapping[str, Any]) -> bool:
    """Whether a run with these ``privacy`` settings has a privacy guarantee."""
    return is_protected(str(privacy["unit"]))


def protected(name: str, kind: str, private: bool) -> bool | None:
    """Whether a row of the comparison is covered by the privacy guarantee, or independent of merchants' data.

    :returns: None in a run without privacy
    """
    if not private:
        return None
    return kind != "control" or name not in UNPROTECTED_CONTROLS


def without_sizes(account: Mapping[str, Any]) -> dict[str, Any]:
    """Remove everything that is counted over merchants' tables from a dataset account (``FederatedData.account``)."""
    kept = {key: account[key] for key in _PLAIN if key in account}
    for key, tables in _COUNTED.items():
        if key in account:
            kept[key] = {table: account[key][table] for table in tables if table in account[key]}
    return kept


def coarse(accuracy: float) -> float:
    """Round an accuracy to whole per cent: the exact fraction reveals the number of test examples."""
    return round(accuracy, _DIGITS)
