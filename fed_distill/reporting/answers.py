"""Participation of merchants in a run's rounds, with reasons, counted from ``metrics.jsonl``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("asked", "merged", "refused", "late", "absent", "resting")
"""States of a merchant in a round: ``asked`` counts all selected merchants; the others partition them."""
WAYS = ("downlink", "uplink")
MOST_REASONS = 10
"""Maximum number of reasons listed per federation, the most frequent first."""


def bytes_of_a_merchant(summary: Mapping[str, Any], arm: str, row: Mapping[str, Any]) -> dict[str, float]:
    """Return the bytes of a merchant in all rounds of a federation, ``downlink`` and ``uplink``, on average over
    merchants and seeds. Of a run of an older release, which did not add them up: as if it took part in all rounds.

    :param arm: name of its rounds: of a federation its title, of the control ``fedavg``
    :param row: its entry in the summary
    """
    counted = summary.get("answers", {}).get(arm, {})
    if "bytes" not in counted:
        return {way: row["rounds"] * row["bytes"][f"{way}_per_merchant_round"] for way in WAYS}
    return {way: counted["bytes"][way] / (counted["seeds"] * summary["merchants"]) for way in WAYS}


def answers(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Count participation by federation, over all rounds of all seeds.

    ``asked`` to ``resting``: merchants, counted once per round, in the merged attempt. rounds: number of merged
    rounds. seeds: number of seeds. bytes: of all merchants in these rounds, by way. retried: number of attempts with
    too few participants. reasons: ``[text, times]`` of excluded merchants and repeated rounds, the most frequent first.
    Lines without ``answers``, from older releases, are ignored.
    """
    found: dict[str, dict[str, Any]] = {}
    reasons: dict[str, Counter[str]] = {}
    seeds: dict[str, set[int]] = {}
    for record in records:
        if "answers" not in record:
            continue
        title = record["federation"]
        first = {"rounds": 0, "retried": 0, **dict.fromkeys(KINDS, 0), "bytes": dict.fromkeys(WAYS, 0)}
        row = found.setdefault(title, first)
        row["rounds"] += 1
        seeds.setdefault(title, set()).add(record["seed"])
        for way in WAYS:
            row["bytes"][way] += record["total_bytes"][way]
        row["retried"] += len(record["retried"])
        for kind in KINDS:
            row[kind] += record["answers"][kind]
        reasons.setdefault(title, Counter()).update([*record["reasons"], *record["retried"]])
    return {
        title: {
            **row,
            "seeds": len(seeds[title]),
            "reasons": [list(one) for one in reasons[title].most_common(MOST_REASONS)],
        }
        for title, row in found.items()
    }
