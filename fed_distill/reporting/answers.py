"""Who took part in a run's rounds, who did not, and why: counted from the lines of ``metrics.jsonl``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("asked", "merged", "refused", "late", "absent", "resting")
"""What a merchant can be in a round: one of all that were meant to take part; merged, or one of the others."""
MOST_REASONS = 10
"""Reasons that are listed for a federation, those of most merchants first."""


def answers(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By federation, over all rounds of all seeds.

    ``asked`` to ``resting``: merchants, counted once a round, of the attempt that was merged. rounds: that were merged.
    retried: times that a round had too few and was asked again. reasons: ``[text, times]``, of merchants that were left
    out and of rounds that were asked again, the most frequent first. Lines without ``answers``, which an older release
    wrote, are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    reasons: dict[str, Counter[str]] = {}
    for record in records:
        if "answers" not in record:
            continue
        title = record["federation"]
        row = found.setdefault(title, {"rounds": 0, "retried": 0, **dict.fromkeys(KINDS, 0)})
        row["rounds"] += 1
        row["retried"] += len(record["retried"])
        for kind in KINDS:
            row[kind] += record["answers"][kind]
        reasons.setdefault(title, Counter()).update([*record["reasons"], *record["retried"]])
    return {
        title: {**row, "reasons": [list(one) for one in reasons[title].most_common(MOST_REASONS)]}
        for title, row in found.items()
    }
