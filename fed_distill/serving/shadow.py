"""A second student that is asked a share of the requests in the background, to be compared before it answers anybody.

An answer never waits for the shadow: requests are queued for it without waiting, dropped if the queue is full, and
answered one at a time in a thread of its own. Their texts are in the queue until then.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from fed_distill.serving.scorer import Scores
from fed_distill.serving.served_student import ServedStudent
from fed_distill.serving.service_config import ShadowTable
from fed_distill.serving.watch_metrics import ShadowMetrics

TOP = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agreement:
    """How far two rankings agree.

    overlap: share of the first ``TOP`` that both have; None if there are not more than ``TOP`` titles, all of which
    both have, or if neither found a product. correlations: Spearman's rho and Kendall's tau-b of the scores by
    ``spearman`` and ``kendall``, which allow for ties; without those that are undefined, of fewer than two titles or
    of equal scores.
    """

    overlap: float | None
    correlations: Mapping[str, float] = field(default_factory=dict)


Ask = Callable[[ServedStudent], Awaitable[Callable[[], Agreement]]]
"""Asks a student what was answered by another, and returns how to compare both."""


class Unmetered:
    """Leaves batches and lookups of the shadow out of the service's metrics."""

    def batch(self, rows: int) -> None:
        """Count nothing."""

    def cached(self, hits: int, misses: int) -> None:
        """Count nothing."""


class Shadow:
    """Asks the shadow. For one event loop."""

    def __init__(
        self,
        table: ShadowTable,
        student: Callable[[], ServedStudent | None],
        executor: Executor,
        metrics: ShadowMetrics,
    ) -> None:
        """student: returns the current shadow. executor: where rankings are compared; its thread is the shadow's."""
        self._share, self._student, self._executor, self._metrics = table.share, student, executor, metrics
        self._queue: asyncio.Queue[tuple[str, Ask]] = asyncio.Queue(table.queue)
        self._told: str | None = None

    def offer(self, route: str, ask: Ask) -> None:
        """Queue a request that was answered, if it is in the share and there is room."""
        if random.random() >= self._share:
            return
        try:
            self._queue.put_nowait((route, ask))
        except asyncio.QueueFull:
            self._metrics.request(route, "dropped")

    async def run(self) -> NoReturn:
        """Ask the shadow what is queued, until cancelled."""
        while True:
            route, ask = await self._queue.get()
            student = self._student()
            if student is None:
                self._metrics.request(route, "dropped")
                continue
            try:
                began = time.perf_counter()
                compare = await ask(student)
                seconds = time.perf_counter() - began
                found = await asyncio.get_running_loop().run_in_executor(self._executor, compare)
            except Exception as error:  # whatever the shadow does, the service goes on
                self._failed(route, student, error)
            else:
                self._metrics.compared(route, seconds, found.overlap, found.correlations)

    def _failed(self, route: str, student: ServedStudent, error: Exception) -> None:
        self._metrics.request(route, "failed")
        if self._told != student.version:  # once a version; its message may quote a request, its kind does not
            self._told = student.version
            _log.warning(
                "shadow %s fails at %s with %s: is it of the same task?", student.version, route, type(error).__name__
            )


def rankings_agree(answered: Scores, shadow: Scores) -> Agreement:
    """Compare two students' scores of the same titles, each float64 ``[n]``.

    Spearman, "The proof and measurement of association between two things", 1904; Kendall, "The treatment of ties in
    ranking problems", Biometrika 1945.
    """
    from scipy import stats  # takes half a second, and only a service with a shadow compares

    if len(answered) != len(shadow):
        raise ValueError(f"{len(answered)} and {len(shadow)} scores")
    orders = [np.argsort(-scores, kind="stable").tolist() for scores in (answered, shadow)]
    overlap = _overlap(*orders) if len(answered) > TOP else None
    if len(answered) < 2 or min(np.ptp(answered), np.ptp(shadow)) == 0:
        return Agreement(overlap)
    found = {
        "spearman": stats.spearmanr(answered, shadow).statistic,
        "kendall": stats.kendalltau(answered, shadow).statistic,
    }
    return Agreement(overlap, {kind: float(value) for kind, value in found.items()})


def hits_agree(answered: Sequence[str], shadow: Sequence[str]) -> Agreement:
    """Compare two lists of products, from best to worst, by what is among the first ``TOP`` of both."""
    return Agreement(_overlap(answered, shadow) if answered or shadow else None)


def _overlap(first: Sequence[object], second: Sequence[object]) -> float:
    most = min(TOP, max(len(first), len(second)))
    return len(set(first[:TOP]) & set(second[:TOP])) / most
