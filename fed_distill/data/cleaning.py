"""Clean the rows of every dataset: drop unusable rows and mask personal data, with an account of both.

A row is dropped for the first reason of `REASONS` that applies.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fed_distill.data.examples import UNLABELED
from fed_distill.text.cleaning import mask

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
) -> Cleaned:
    """Drop unusable rows and mask personal data.

    White space is collapsed first. A duplicate has the merchant, text and pair of an earlier row.

    :param texts: first texts ``[n]``
    :param pairs: second texts ``[n]``, or None
    :param labels: class indices ``[n]``, or None if they are made later
    :param merchants: names ``[n]``, or None if a partitioner assigns merchants
    :param max_characters: longest text that is kept
    """
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    rows: list[int] = []
    kept: list[str] = []
    kept_pairs: list[str] | None = None if pairs is None else []
    seen: set[tuple[str, ...]] = set()
    unlabeled: Counter[str] = Counter()
    labeled: set[str] = set()
    for row, raw in enumerate(texts):
        merchant = "" if merchants is None else merchants[row]
        fields = (raw,) if pairs is None else (raw, pairs[row])
        found = tuple(" ".join((text or "").split()) for text in fields)
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
        elif (key := (merchant, *found)) in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            labeled.add(merchant)
            rows.append(row)
            kept.append(mask(found[0], masked))
            if kept_pairs is not None:
                kept_pairs.append(mask(found[1], masked))
    if dropped["unknown label"]:
        LOG.warning("dropped %d of %d rows without a known label", dropped["unknown label"], len(texts))
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
