"""Cost and savings of transport coding: each federation compared with the one that differs only in its transport."""

from collections.abc import Mapping
from typing import Any

from fed_distill.config import Experiment, FederationConfig


def beside_uncoded(
    experiment: Experiment, rows: Mapping[str, Mapping[str, Any]], headline: str
) -> dict[str, dict[str, Any] | None]:
    """Compare each coded federation, by title, with its uncoded counterpart; None without one.

    ``uplink_ratio`` and ``downlink_ratio`` are the counterpart's bytes divided by its own, ``change`` that of the
    headline score, and ``gap_kept`` its share of the counterpart's ``gap_closed``, or None if either is unknown or that
    is not positive.

    :param experiment: the experiment
    :param rows: summary of all federations, with ``bytes``, ``gap_closed`` and the ``headline`` score
    :param headline: name of the headline metric
    """
    plain = {one.title: _but_for_transport(one) for one in experiment.federations() if not _coded(experiment, one)}
    found: dict[str, dict[str, Any] | None] = {}
    for federation in experiment.federations():
        own = _but_for_transport(federation)
        twin = next((title for title, other in plain.items() if other == own), None)
        title = federation.title
        found[title] = None
        if twin is not None and title not in plain and {title, twin} <= rows.keys():
            found[title] = _beside(twin, rows[title], rows[twin], headline)
    return found


def _coded(experiment: Experiment, federation: FederationConfig) -> bool:
    transport = experiment.transport_of(federation.title)
    return bool(transport.model_dump(exclude_defaults=True, exclude={"error_feedback"}))


def _but_for_transport(federation: FederationConfig) -> FederationConfig:
    return federation.model_copy(update={"transport": None, "label": ""})


def _beside(twin: str, row: Mapping[str, Any], other: Mapping[str, Any], headline: str) -> dict[str, Any]:
    gap, whole = row["gap_closed"], other["gap_closed"]
    change = None if row[headline] is None or other[headline] is None else row[headline] - other[headline]
    return {
        "uncoded": twin,
        "uplink_ratio": _ratio(row, other, "uplink_per_merchant_round"),
        "downlink_ratio": _ratio(row, other, "downlink_per_merchant_round"),
        "change": change,
        "gap_kept": gap / whole if gap is not None and whole is not None and whole > 0.0 else None,
    }


def _ratio(row: Mapping[str, Any], other: Mapping[str, Any], part: str) -> float | None:
    own = row["bytes"][part]
    return other["bytes"][part] / own if own else None
