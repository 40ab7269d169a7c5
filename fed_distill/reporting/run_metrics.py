"""Prometheus metrics of a run's server: the callback ``prometheus``.

They are written to ``metrics.prom`` in the run's folder after each round, and at most once a minute within it, for the
textfile collector of node_exporter, because a short run may end before it is scraped; and served over HTTP during the
run, if ``runtime.metrics_port`` is set. They contain numbers of merchants but no names, and no privacy budgets, which
are in the sites' ``site_metrics``.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fed_distill.config import Experiment
from fed_distill.endpoint import Endpoint, as_text, library
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.files import write_atomic
from fed_distill.transport.requests import Cause

FILE = "metrics.prom"
"""File name in a run's folder."""
ROUND_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Upper bounds of the histogram's buckets."""
_BETWEEN_WRITES = 60.0
"""Seconds between writes of the file for progress within a round."""
_FEDERATION = ("run", "federation", "seed")
_log = logging.getLogger(__name__)


class RunMetrics(Callback):
    """Exports the content of ``metrics.jsonl`` since the start of this process; counters of a resumed run restart at
    zero, which Prometheus' ``increase`` handles.

    Labels: run, federation and seed, and for rejected uplinks the ``Cause`` as reason.
    """

    def __init__(self) -> None:
        client = library("callback 'prometheus'")
        self._registry = client.CollectorRegistry()
        own = {"registry": self._registry}
        self._seconds = client.Histogram(
            "fed_distill_round_seconds", "Time of a round.", _FEDERATION, buckets=ROUND_SECONDS, **own
        )
        self._round = client.Gauge("fed_distill_round", "The last round that has ended.", _FEDERATION, **own)
        self._planned = client.Gauge("fed_distill_rounds_planned", "Rounds of the federation.", _FEDERATION, **own)
        self._merchants = client.Gauge(
            "fed_distill_merchants_merged", "Merchants whose uplinks were merged in the last round.", _FEDERATION, **own
        )
        self._merged = client.Counter("fed_distill_uplinks_merged_total", "Uplinks merged.", _FEDERATION, **own)
        self._rejected = client.Counter(
            "fed_distill_uplinks_rejected_total", "Uplinks rejected or refused.", (*_FEDERATION, "reason"), **own
        )
        self._bytes = {
            way: client.Counter(
                f"fed_distill_{way}_bytes_total", f"Serialized {way}, over all merchants.", _FEDERATION, **own
            )
            for way in ("uplink", "downlink")
        }
        self._active = client.Gauge("fed_distill_run_active", "1 while the run works, 0 after it.", ("run",), **own)
        self._failed = client.Gauge("fed_distill_run_failed", "1 after a run that ended early.", ("run",), **own)
        self._progress = client.Gauge(
            "fed_distill_run_progress_timestamp_seconds", "When a step, stage or round last ended.", ("run",), **own
        )
        self._written = 0.0
        self._run, self._ended = "", False
        self._path: Path | None = None
        self.endpoint: Endpoint | None = None

    def on_start(self, experiment: Experiment, folder: Path) -> None:
        """Start the HTTP server, if configured; raise ConfigError if the port is in use."""
        self._run, self._path = experiment.name, folder / FILE
        self._active.labels(self._run).set(1)
        self._failed.labels(self._run).set(0)
        self._progress.labels(self._run).set(time.time())
        runtime = experiment.runtime
        if runtime.metrics_port is not None:
            self.endpoint = Endpoint(self._registry, runtime.metrics_port, runtime.metrics_address)
            _log.info("metrics are at http://%s:%d/metrics", self.endpoint.address, self.endpoint.port)
        self._write()

    def on_stage(self, title: str, total: int | None) -> None:
        """Note that there is progress."""
        self._went_on()

    def on_step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Note that there is progress."""
        self._went_on()

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Update the metrics."""
        where = self._run, record["federation"], record["seed"]
        self._seconds.labels(*where).observe(record["seconds"])
        self._round.labels(*where).set(record["round"])
        self._planned.labels(*where).set(record["rounds"])
        self._merchants.labels(*where).set(record["merchants"])
        self._merged.labels(*where).inc(record["merchants"])
        for cause in get_args(Cause):  # also zeros: Prometheus sees no increase when a counter appears
            self._rejected.labels(*where, cause).inc(record["causes"].get(cause, 0))
        for way, counter in self._bytes.items():
            counter.labels(*where).inc(record["total_bytes"][way])
        self._progress.labels(self._run).set(time.time())
        self._write()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as ended well."""
        self._ended = True

    def close(self) -> None:
        """Mark the run as inactive, and as failed if it has not ended, and stop the HTTP server."""
        if self._path is not None:
            self._active.labels(self._run).set(0)
            self._failed.labels(self._run).set(not self._ended)
            self._write()
        if self.endpoint is not None:
            self.endpoint.close()
            self.endpoint = None

    def _went_on(self) -> None:
        if self._path is None:
            return
        now = time.time()
        self._progress.labels(self._run).set(now)
        if now - self._written > _BETWEEN_WRITES:
            self._write()

    def _write(self) -> None:
        assert self._path is not None
        self._written = time.time()
        write_atomic(self._path, as_text(self._registry))
