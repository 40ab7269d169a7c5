"""A site's own metrics: trainings, refusals by rule, and the merchants' remaining privacy budgets.

Flower starts a process for each message to a site, so that no process can accumulate counts or serve HTTP. Counts are
stored in the site's state folder, under a lock, and written as text for the textfile collector of node_exporter.
``fed-distill sites metrics`` serves them over HTTP. They are never sent to the server.
"""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_distill.endpoint import as_text, library
from fed_distill.errors import BudgetExceeded, FedDistillError, LedgerError, NotAllowed
from fed_distill.merchant.limits import Rules
from fed_distill.privacy.ledger import Ledgers, composed, exposure
from fed_distill.storage.files import read_json, write_atomic

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

COUNTS, TEXT = "counts.json", "fed_distill.prom"
"""Files of the metrics folder: the counts, and all metrics in Prometheus' text format."""
RULES = ("budget", "failed", "app", *Rules.model_fields)
"""Causes of refusals: the merchants' limits, a failed training, an app of others, or one of ``[limits.rules]``."""


def rule_of(error: FedDistillError) -> str:
    """Return the entry of ``RULES`` for an error that refuses a request."""
    if isinstance(error, NotAllowed):
        return error.rule
    return "budget" if isinstance(error, BudgetExceeded) else "failed"


@dataclass
class Tally:
    """Counts of a site since the last write. scored: number of reported test scores; refused: refusals by rule;
    seconds: processing time of messages."""

    trained: int = 0
    scored: int = 0
    uplink_bytes: int = 0
    messages: int = 0
    errors: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)

    def taken(self) -> "Tally":
        """Return a copy and reset the counts to zero."""
        whole = Tally(**vars(self))
        vars(self).update(vars(Tally()))
        return whole


@dataclass(frozen=True)
class _Budget:
    """A merchant's spent budget by privacy unit, and the total epsilon of an example. stamp: size and modification time
    of its ledger, which is read again if they change."""

    merchant: str
    stamp: str
    spent: Mapping[str, float]
    exposed: float


@dataclass(frozen=True)
class SiteMetrics:
    """The metrics of ``site``, stored in ``folder``, and those of its ``ledgers``.

    limit: returns a merchant's maximum epsilon of an example, None for no limit. Concurrent processes may add counts.
    """

    folder: Path
    site: str
    ledgers: Path
    limit: Callable[[str], float | None]

    def add(self, tally: Tally) -> None:
        """Add ``tally`` and rewrite the text file; raise CheckpointError if the counts are damaged."""
        with self._locked():
            counts, budgets, damaged = self._read()
            for name in ("trained", "scored", "uplink_bytes", "messages", "errors", "seconds"):
                counts[name] = counts.get(name, 0) + getattr(tally, name)
            counts["refused"] = dict(Counter(counts.get("refused", {})) + tally.refused)
            counts["last"] = time.time()
            kept = {**counts, "budgets": {name: vars(budget) for name, budget in budgets.items()}}
            write_atomic(self.folder / COUNTS, json.dumps(kept, indent=1) + "\n")
            registry = library("observing.metrics").CollectorRegistry()
            registry.register(_Fixed(self._families(counts, budgets, damaged)))
            write_atomic(self.folder / TEXT, as_text(registry))

    def registry(self) -> "CollectorRegistry":
        """Return a registry that reads counts and ledgers at each collection."""
        registry: CollectorRegistry = library("observing.metrics").CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> "Iterator[Metric]":
        """Yield the current metrics; raise CheckpointError if the counts are damaged."""
        return iter(self._families(*self._read()))

    def describe(self) -> "list[Metric]":
        """Return nothing; without this method, a registry would collect when it is created."""
        return []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the counts for all other threads and processes; the lock is released when its process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / f".{COUNTS}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> tuple[dict[str, Any], dict[str, _Budget], int]:
        """Return the counts, the budget of each ledger by file name, and the number of damaged ledgers."""
        path = self.folder / COUNTS
        counts: dict[str, Any] = read_json(path) if path.exists() else {}
        stored = counts.pop("budgets", {})
        known = {name: _Budget(**budget) for name, budget in stored.items() if "exposed" in budget}
        ledgers, budgets, damaged = Ledgers(self.ledgers), {}, 0
        for file in ledgers.files():
            former, stamp = known.get(file.name), f"{file.stat().st_size} {file.stat().st_mtime_ns}"
            try:
                budgets[file.name] = former if former and former.stamp == stamp else _spent(ledgers, file, stamp)
            except LedgerError:  # counted here; the merchant's next training is refused with its name
                damaged += 1
        return counts, budgets, damaged

    def _families(self, counts: Mapping[str, Any], budgets: Mapping[str, _Budget], damaged: int) -> "list[Metric]":
        core = library("observing.metrics").core

        def single(kind: str, name: str, text: str, value: float) -> "Metric":
            family: Metric = getattr(core, f"{kind}MetricFamily")(f"fed_distill_{name}", text, labels=["site"])
            family.add_metric([self.site], value)  # type: ignore[attr-defined]  # of families, not of all metrics
            return family

        refused = core.CounterMetricFamily("fed_distill_site_refused", "Requests refused.", labels=["site", "rule"])
        for rule in RULES:
            refused.add_metric([self.site, rule], counts.get("refused", {}).get(rule, 0))
        labels = ["site", "merchant", "unit"]
        spent = core.GaugeMetricFamily("fed_distill_epsilon_spent", "Epsilon spent, over all runs.", labels=labels)
        shown = "Epsilon that one example is exposed to by releases of all units."
        exposed = core.GaugeMetricFamily("fed_distill_epsilon_exposed", shown, labels=labels[:2])
        left = core.GaugeMetricFamily("fed_distill_epsilon_left", "Epsilon left of the limit.", labels=labels[:2])
        for budget in budgets.values():
            limit = self.limit(budget.merchant)
            for unit, epsilon in budget.spent.items():
                spent.add_metric([self.site, budget.merchant, unit], epsilon)
            exposed.add_metric([self.site, budget.merchant], budget.exposed)
            if limit is not None:
                left.add_metric([self.site, budget.merchant], max(limit - budget.exposed, 0.0))
        seen = "Time of the server's last message."
        return [
            single("Counter", "site_trained", "Trainings whose uplinks were sent.", counts.get("trained", 0)),
            single("Counter", "site_scored", "Test scores that were sent.", counts.get("scored", 0)),
            refused,
            single("Counter", "site_uplink_bytes", "Serialized uplinks.", counts.get("uplink_bytes", 0)),
            single("Counter", "site_messages", "Messages from the server.", counts.get("messages", 0)),
            single("Counter", "site_errors", "Messages answered by an error.", counts.get("errors", 0)),
            single("Counter", "site_seconds", "Processing time of messages.", counts.get("seconds", 0.0)),
            single("Gauge", "site_message_timestamp_seconds", seen, counts.get("last", 0.0)),
            single("Gauge", "site_ledgers_damaged", "Ledgers that are torn or edited.", damaged),
            spent,
            exposed,
            left,
        ]


@dataclass(frozen=True, eq=False)
class _Fixed:
    """A collector of given metrics."""

    families: "list[Metric]"

    def collect(self) -> "Iterator[Metric]":
        """Return the metrics."""
        return iter(self.families)


def _spent(ledgers: Ledgers, file: Path, stamp: str) -> _Budget:
    entries = ledgers.read(file)
    units = dict.fromkeys(entry.charge.unit for entry in entries)
    charges = {unit: [entry.charge for entry in entries if entry.charge.unit == unit] for unit in units}
    spent: dict[str, float] = {unit: composed(own) for unit, own in charges.items()}
    return _Budget(entries[0].merchant, stamp, spent, exposure(entry.charge for entry in entries))
