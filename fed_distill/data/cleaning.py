"""Clean the rows of every dataset: drop unusable rows and mask personal data, with an account of both.

A row is dropped for the first reason of `REASONS` that applies.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fed_distill.data.examples import UNLABELED
from fed_distill.errors import DataError
from fed_distill.text.cleaning import collapse, mask

LOG = logging.getLogger("fed_distill.data")

REASONS = ("no merchant", "empty", "too long", "unknown label", "duplicate")
"""Reasons to drop a row, in the order of the checks."""


@dataclass(frozen=True)
class Cleaned:
    """Rows after cleaning.

    rows: positions of the kept rows in the input. texts, pairs: their masked texts. account: JSON-serializable
    ``rows_read``, ``rows_kept``, ``dropped`` (by reason), ``masked`` (by kind) and ``unlabeled_merchants``.
    """

    rows: tuple[int, ...]
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    account: dict[str, Any]


def clean(
    texts: Sequence[str | None],
    pairs: Sequence[str | None] | None,
    labels: Sequence[int] | None,
    merchants: Sequence[str] | None,
    max_characters: int,
    units: Sequence[Hashable] | None = None,
) -> Cleaned:
    """Drop unusable rows and mask personal data.

    White space is collapsed first. A duplicate has the merchant, text and pair of an earlier row.

    :param texts: first texts ``[n]``
    :param pairs: second texts ``[n]``, or None
    :param labels: class indices ``[n]``, or None if they are made later
    :param merchants: names ``[n]``, or None if a partitioner assigns merchants
    :param max_characters: longest text that is kept
    :param units: what else a duplicate has in common ``[n]``: of campaigns, the customer, each of whom counts
    :raises DataError: a merchant's name is not valid Unicode; the message has its row
    """
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    rows: list[int] = []
    kept: list[str] = []
    kept_pairs: list[str] | None = None if pairs is None else []
    seen: set[tuple[Hashable, ...]] = set()
    unlabeled: Counter[str] = Counter()
    labeled: set[str] = set()
    _check_names(merchants or ())
    for row, raw in enumerate(texts):
        merchant = "" if merchants is None else merchants[row]
        fields = (raw,) if pairs is None else (raw, pairs[row])
        found = tuple(collapse(text or "") for text in fields)
        unknown = labels is not None and labels[row] == UNLABELED
        if merchants is not None and not merchant:
            dropped["no merchant"] += 1
        elif not all(found):
            dropped["empty"] += 1
        elif max(map(len, found)) > max_characters:
            dropped["too long"] += 1
        elif unknown:
            dropped["unknown label"] += 1
            unlabeled[merchant] += 1
        elif (key := (merchant, *found, None if units is None else units[row])) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            labeled.add(merchant)
            rows.append(row)
            kept.append(mask(found[0], masked))
            if kept_pairs is not None:
                kept_pairs.append(mask(found[1], masked))
    silent = sorted(set(unlabeled) - labeled - {""})
    if silent:
        LOG.warning(
            "dropped %d merchants without a known label: %s",
            len(silent),
            ", ".join(silent[:5]) + " ..." * (len(silent) > 5),
        )
    account = {
        "rows_read": len(texts),
        "rows_kept": len(rows),
        "dropped": {reason: dropped[reason] for reason in REASONS},
        "masked": {kind: masked[kind] for kind in ("email", "phone", "card")},
        "unlabeled_merchants": silent,
    }
    return Cleaned(tuple(rows), tuple(kept), None if kept_pairs is None else tuple(kept_pairs), account)


def unlabeled_rows(account: Mapping[str, Any]) -> str:
    """Describe the rows that were dropped for their labels, with a remedy if the labels are known; "" without any.

    :param account: of ``Cleaned``; a table's has ``unknown_labels`` too: rows by label, the most frequent labels
    """
    count = account["dropped"].get("unknown label", 0)
    if not count:
        return ""
    told = f"dropped {count:,} of {account['rows_read']:,} rows, whose labels are no class"
    labels: Mapping[str, int] = account.get("unknown_labels", {})
    if not labels:
        return told
    shown = ", ".join(f"{label!r} ({rows:,})" if label else f"empty ({rows:,})" for label, rows in labels.items())
    more = " and others" if sum(labels.values()) < count else ""
    return f"{told}: {shown}{more}; to keep them, map the labels with data.options.labels"


def _check_names(merchants: Sequence[str]) -> None:
    for name in dict.fromkeys(merchants):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"row {merchants.index(name) + 1}: the merchant's name {name!r} has half of a surrogate pair, which is "
                "no character and cannot name a file: correct the name in the data"
            ) from error


def clean_served(texts: Sequence[str], name: str, max_characters: int, separator: str | None = None) -> list[str]:
    """Return ``texts`` as ``clean`` would keep them, for prediction; nothing is dropped.

    Parameters and errors are those of ``clean_text``; an error has the position of the text too.
    """
    if isinstance(texts, str):
        raise DataError(f"{name} must be a list of strings, not one string: write [{name}]")
    return [clean_text(text, f"{name}[{place}]", max_characters, separator) for place, text in enumerate(texts)]


def clean_text(text: str, name: str, max_characters: int, separator: str | None = None) -> str:
    """Return ``text`` as ``clean`` would keep it.

    :param name: name of the argument, for errors
    :param max_characters: longest text in the student's training data
    :param separator: of the parts of a text that was joined of several; each part is limited
    :raises DataError: the text is not a string, empty, or longer than any in the training data
    """
    if not isinstance(text, str):
        raise DataError(f"{name} must be a string, not {type(text).__name__}")
    collapsed = collapse(text)
    if not collapsed:
        raise DataError(f"{name} is empty: leave it out")
    parts = [collapsed] if separator is None else collapsed.split(separator)
    longest = max(map(len, parts))
    if longest > max_characters:
        raise DataError(
            f"{name} has {longest:,} characters{' in one part' if len(parts) > 1 else ''}, and texts of the training "
            f"data have at most {max_characters:,} (data.max_characters): shorten it"
        )
    return (separator or "").join(map(mask, parts))
