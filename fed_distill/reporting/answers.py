"""Participation of merchants in a run's rounds, with reasons, counted from ``metrics.jsonl``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("asked", "merged", "refused", "late", "absent", "resting")
"""States of a merchant in a round: ``asked`` counts all selected merchants; the others partition them."""
MOST_REASONS = 10
"""Maximum number of reasons listed per federation, the most frequent first."""


def rounds_of_a_merchant(summary: Mapping[str, Any], title: str, rounds: int) -> float:
    """Return in how many of a federation's ``rounds`` a merchant sent something, on average over merchants and seeds;
    in all for a run of an older release, which did not count."""
    counted = summary.get("answers", {}).get(title)
    return float(rounds) if not counted else rounds * counted["merged"] / (counted["rounds"] * summary["merchants"])


def answers(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count participation by federation, over all rounds of all seeds.

    ``asked`` to ``resting``: merchants, counted once per round, in the merged attempt. rounds: number of merged
    rounds. retried: number of attempts with too few participants. reasons: ``[text, times]`` of excluded merchants and
    repeated rounds, the most frequent first. Lines without ``answers``, from older releases, are ignored.
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
