"""What the report of a private run leaves out or marks, so that it does not tell more than the run has promised.

Of merchants' tables no exact size and no class count is reported: they change with a single example. Rows of a
comparison that were computed without privacy, and merchants' own test scores, are marked as not protected.
"""

from collections.abc import Mapping
from typing import Any

from fed_distill.config import is_protected

UNPROTECTED_CONTROLS = ("local", "pooled", "fedavg")
"""Controls that are trained on merchants' examples without privacy; ``server`` is trained on the server's alone."""
WHY = (
    "Not covered by ε: a row that was trained on merchants' data without privacy, or a column of exact scores on "
    "merchants' own test examples. A simulation may compute both, since whoever runs it has all data; a real site "
    "refuses them unless its own rules allow them."
)
"""What must be said wherever something is marked."""
_PLAIN = ("dataset", "task", "source", "limited_to", "proxy_set")
_COUNTED = {
    "merchants": ("all", "public", "clients"),
    "rows": ("public",),
    "examples": ("public", "public_valid", "proxy"),
    "classes": ("public", "public_valid"),
}
"""What of a dataset's account is kept: of the server's own tables, and of merchants how many there are."""
_DIGITS = 2


def is_private(privacy: Mapping[str, Any]) -> bool:
    """Whether a run with this ``privacy`` promises anything."""
    return is_protected(str(privacy["unit"]))


def protected(name: str, kind: str, private: bool) -> bool | None:
    """Whether what a row of the comparison is computed from is covered by the promise, or is no merchant's at all; None
    in a run without one."""
    if not private:
        return None
    return kind != "control" or name not in UNPROTECTED_CONTROLS


def without_sizes(account: Mapping[str, Any]) -> dict[str, Any]:
    """The account of a dataset (``FederatedData.account``) without anything that is counted in merchants' tables."""
    kept = {key: account[key] for key in _PLAIN if key in account}
    for key, tables in _COUNTED.items():
        if key in account:
            kept[key] = {table: account[key][table] for table in tables if table in account[key]}
    return kept


def coarse(accuracy: float) -> float:
    """A merchant's accuracy to whole per cent: the exact fraction would tell how many test examples it has."""
    return round(accuracy, _DIGITS)
