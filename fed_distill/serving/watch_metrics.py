"""Metrics of drift and of the shadow, for Prometheus.

With several worker processes each has a window of its own, and gauges of a window are shown for each process (label
``pid``): take the maximum. Counters and histograms add up.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from fed_distill.serving.drift import Drift

ShadowResult = Literal["compared", "failed", "dropped"]
Made = Callable[..., Any]
"""Makes a metric in the service's registry: kind, name, help, labels, and the arguments of the kind."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SHARES = tuple(number / 10 for number in range(11))
_CORRELATIONS = (-0.5, 0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_NOTHING = float("nan")
"""What Prometheus takes for no value: it exceeds no limit, and a chart has a gap."""


class DriftMetrics:
    """Drift by role, ``student`` or ``canary``."""

    def __init__(self, made: Made, counter: Any, gauge: Any) -> None:
        role, part = ("role", "of"), ("role", "part")
        self._psi = made(
            gauge, "drift_psi", "Population stability index of the window", role, multiprocess_mode="liveall"
        )
        self._values = made(
            gauge, "drift_values", "Values in the window of the index", role, multiprocess_mode="liveall"
        )
        self._measured = made(
            gauge,
            "drift_measured",
            "Whether there is a reference; 0: none",
            role[:1],
            multiprocess_mode="livemin",
        )
        self._features = made(counter, "watched_features_total", "Features of the texts that were watched", part)
        self._unseen = made(counter, "unseen_features_total", "Of these, features that no text of the server has", part)
        self._reference = made(
            gauge, "reference_unseen_share", "Unseen share on held-out data", part, multiprocess_mode="livemax"
        )
        self._ceiling = made(
            gauge, "unseen_ceiling", "Unseen share of features that are all new", part, multiprocess_mode="livemax"
        )
        self._shown: dict[str, set[str]] = {}

    def drift(self, role: str, found: Mapping[str, Drift]) -> None:
        """Show the drift of a role; what is not known, or not any more, is no number."""
        shown = self._shown.setdefault(role, set())
        shown |= set(found)
        for name in shown:
            one = found.get(name, Drift(0, None))
            self._psi.labels(role, name).set(_NOTHING if one.psi is None else one.psi)
            self._values.labels(role, name).set(one.values)

    def measured(self, role: str, possible: bool) -> None:
        """Show whether the drift of a role, which is to be watched, can be measured."""
        self._measured.labels(role).set(int(possible))

    def features(self, role: str, part: str, features: int, unseen: int) -> None:
        """Count features of watched texts."""
        self._features.labels(role, part).inc(features)
        self._unseen.labels(role, part).inc(unseen)

    def reference(self, role: str, shares: Mapping[str, float], ceiling: float) -> None:
        """Show what a role's student is compared with. shares: unseen share by part."""
        for part, share in shares.items():
            self._ceiling.labels(role, part).set(ceiling)
            self._reference.labels(role, part).set(share)


class ShadowMetrics:
    """What the shadow did, and how far its rankings are from the answers."""

    def __init__(self, made: Made, counter: Any, histogram: Any) -> None:
        route = ("route",)
        self._requests = made(counter, "shadow_requests_total", "Requests that the shadow got", ("route", "result"))
        self._seconds = made(histogram, "shadow_seconds", "Duration in the shadow", route, buckets=_SECONDS)
        self._overlap = made(histogram, "shadow_overlap", "Share of the first ten in common", route, buckets=_SHARES)
        self._correlation = made(
            histogram,
            "shadow_rank_correlation",
            "Correlation of both rankings",
            ("route", "kind"),
            buckets=_CORRELATIONS,
        )

    def request(self, route: str, result: ShadowResult) -> None:
        """Count a request."""
        self._requests.labels(route, result).inc()

    def compared(self, route: str, seconds: float, overlap: float | None, correlations: Mapping[str, float]) -> None:
        """Count a comparison; see ``shadow.Agreement``."""
        self._requests.labels(route, "compared").inc()
        self._seconds.labels(route).observe(seconds)
        if overlap is not None:
            self._overlap.labels(route).observe(overlap)
        for kind, value in correlations.items():
            self._correlation.labels(route, kind).observe(value)
