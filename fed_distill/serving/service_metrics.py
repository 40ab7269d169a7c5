"""Metrics of the service in Prometheus' text format. No text of a request is ever a label.

Several workers keep them in files of the folder ``PROMETHEUS_MULTIPROC_DIR``, and each shows the sum over all of them
(https://prometheus.github.io/client_python/multiprocess/): gauges of the workers that live, counters of those that
ended too.
"""

import importlib
import os
from typing import Any

from fed_distill.endpoint import library
from fed_distill.serving.watch_metrics import DriftMetrics, ShadowMetrics

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable by which the Prometheus client library, when it is imported, learns that several processes count."""


class ServiceMetrics:
    """What ``/metrics`` shows, in a registry of its own."""

    def __init__(self) -> None:
        prometheus = library("the service")
        self._prometheus = prometheus
        self._registry = prometheus.CollectorRegistry()
        self._shared = os.environ.get(WORKERS_FOLDER)

        def made(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"fed_distill_{name}", text, labels, registry=self._registry, **more)

        counter, histogram, gauge = prometheus.Counter, prometheus.Histogram, prometheus.Gauge
        self._requests = made(counter, "requests_total", "Requests by route and status", ("route", "status"))
        self._seconds = made(histogram, "request_seconds", "Duration of a request", ("route",), buckets=_SECONDS)
        self._batches = made(histogram, "batch_rows", "Pairs or texts in a batch", buckets=_ROWS)
        self._lookups = made(counter, "vector_lookups_total", "Texts looked up in the vector cache", ("result",))
        self._hits, self._misses = (self._lookups.labels(result) for result in ("hit", "miss"))
        live: dict[str, Any] = {"multiprocess_mode": "livesum"}
        self.in_flight = made(gauge, "in_flight_requests", "Requests that are being answered", **live)
        self.waiting = made(gauge, "queued_rows", "Pairs or texts that wait for the next batch", **live)
        which = ("role", "version", "variant")
        self._students = made(gauge, "student_info", "Workers that serve the student; 0: none any more", which, **live)
        self._reloads = made(counter, "reloads_total", "Students and keys loaded or refused", ("what", "result"))
        self._answers = made(counter, "answers_total", "Answers by version of the student", ("version",))
        self.drift = DriftMetrics(made, counter, gauge)
        self.shadow = ShadowMetrics(made, counter, histogram)
        self._by_route: dict[tuple[str, int], tuple[Any, Any]] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        series = self._by_route.get((route, status))
        if series is None:
            series = self._requests.labels(route, str(status)), self._seconds.labels(route)
            self._by_route[route, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def batch(self, rows: int) -> None:
        """Count a batch."""
        self._batches.observe(rows)

    def cached(self, hits: int, misses: int) -> None:
        """Count lookups of vectors."""
        self._hits.inc(hits)
        self._misses.inc(misses)

    def answered(self, version: str) -> None:
        """Count an answer of a student."""
        self._answers.labels(version).inc()

    def reloaded(self, what: str, result: str) -> None:
        """Count a reload. what: ``student``, ``canary`` or ``keys``. result: ``loaded`` or ``refused``."""
        self._reloads.labels(what, result).inc()

    def student(self, role: str, version: str, variant: str, serving: bool) -> None:
        """Say which students are in service."""
        if serving or self._shared is not None:  # the library cannot remove what is in a file
            self._students.labels(role, version, variant).set(int(serving))
        else:
            self._students.remove(role, version, variant)

    def text(self) -> bytes:
        """Return all metrics, in the text format."""
        registry = self._registry
        if self._shared is not None:
            registry = self._prometheus.CollectorRegistry()
            multiprocess = importlib.import_module("prometheus_client.multiprocess")
            multiprocess.MultiProcessCollector(registry, self._shared)
        content: bytes = self._prometheus.generate_latest(registry)
        return content
