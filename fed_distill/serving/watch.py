"""What the service sees: the drift of its requests, and the shadow that is asked some of them.

Of each second, about ``drift.requests_per_second`` random requests are watched, with at most ``TEXTS`` titles each, so
that the cost does not grow with the traffic. Texts are counted in a thread of their own and are not kept.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from fed_distill.data.cleaning import clean_served
from fed_distill.data.tasks import HISTORY_SEPARATOR, history_text
from fed_distill.serving.api_models import RankRequest, RecommendRequest, ScoreRequest, SearchRequest
from fed_distill.serving.drift import Drift, DriftWindow
from fed_distill.serving.exported_folder import REFERENCE
from fed_distill.serving.index import Hit
from fed_distill.serving.reference import FeatureCounter, Reference, histograms
from fed_distill.serving.scorer import Probabilities, Ranked, Scores
from fed_distill.serving.served_student import ServedStudent
from fed_distill.serving.service_config import ServeConfig
from fed_distill.serving.service_metrics import ServiceMetrics
from fed_distill.serving.shadow import Agreement, Ask, Shadow, hits_agree, rankings_agree
from fed_distill.serving.students import Role, Students

TEXTS = 8
"""Titles of a request that are watched, at random: those of one request are alike, and more would tell little more."""
_PENDING = 4
"""Requests that wait for the thread that counts; further ones are not watched."""
_SHOW_SECONDS = 5.0
NO_REFERENCE = f"its export has no {REFERENCE}: export the student again with the run's data, without --no-quality"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watched:
    """A request and its answer. route: ``score``, ``rank``, ``recommend`` or ``search``. texts, pairs: first and second
    texts. scores: of some of its pairs."""

    route: str
    texts: Sequence[str]
    pairs: Sequence[str]
    scores: Scores


class Thinning:
    """Chooses about ``rate`` requests of each second at random.

    The chance of a request is ``rate`` over the requests of the second before, or of this second so far, if they are
    more: within a second all have about the same chance.
    """

    def __init__(self, rate: float, clock: Callable[[], float], draw: Callable[[], float]) -> None:
        """clock: seconds. draw: uniform in [0, 1)."""
        self._rate, self._clock, self._draw = rate, clock, draw
        self._second, self._count, self._before = 0, 0, 0

    def chosen(self) -> bool:
        """Count a request, and return whether it is chosen."""
        second = int(self._clock())
        if second != self._second:
            self._before = self._count if second == self._second + 1 else 0
            self._second, self._count = second, 0
        self._count += 1
        return self._draw() * max(self._count, self._before) < self._rate


class StudentDrift:
    """The window of one student in service. ``count`` is for any thread."""

    def __init__(self, student: ServedStudent, reference: Reference, features: FeatureCounter, seconds: float) -> None:
        """features: counts those of the student. seconds: length of the window."""
        self.student, self.features = student, features
        self.shares: dict[str, float] = {part: one.unseen_share for part, one in reference.texts.items()}
        self._window = DriftWindow(histograms(reference, student.student.variant), seconds)
        self._separator = HISTORY_SEPARATOR if student.student.task.of_titles else None

    def count(self, watched: Watched, now: float) -> dict[str, tuple[int, int]]:
        """Count texts and scores, and return the features and unseen features of each part. now: of a monotonic clock.

        :raises DataError: a text is not one that the student would answer
        """
        longest, first = self.student.student.max_characters, len(watched.texts)
        cleaned = [
            *clean_served(watched.texts, "text", longest, self._separator),
            *clean_served(watched.pairs, "pair", longest),
        ]
        features, unseen = self.features.count(cleaned)
        lengths = np.fromiter(map(len, cleaned), dtype=np.int64, count=len(cleaned))
        values: dict[str, npt.ArrayLike] = {f"{watched.route}_score": watched.scores}
        counted: dict[str, tuple[int, int]] = {}
        for part, rows in (("text", slice(first)), ("pair", slice(first, None))):
            if len(lengths[rows]):
                values |= {f"{part}_length": lengths[rows], f"{part}_features": features[rows]}
                counted[part] = int(features[rows].sum()), int(unseen[rows].sum())
        self._window.add(values, now)
        return counted

    def drift(self, now: float) -> dict[str, Drift]:
        """Return the drift of each histogram."""
        return self._window.drift(now)


class Watch:
    """Watches the answers of the service. For one event loop."""

    def __init__(self, config: ServeConfig, students: Students, metrics: ServiceMetrics) -> None:
        """students: those in service."""
        self._students, self._metrics, self._config = students, metrics, config.drift
        self._clock, self._pending = time.monotonic, 0
        self._thinning = Thinning(config.drift.requests_per_second, self._clock, random.random)
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="watching")
        self._drifts: dict[Role, tuple[ServedStudent, StudentDrift | None]] = {}
        self._shadow = None
        self._shadow_searches = config.shadow is not None and config.shadow.index is not None
        if config.shadow is not None:
            self._shadow = Shadow(config.shadow, students.shadow, students.shadow_executor, metrics.shadow)

    async def run(self) -> None:
        """Show drift every few seconds and ask the shadow, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show_often())
            if self._shadow is not None:
                tasks.create_task(self._shadow.run())

    def close(self) -> None:
        """End the thread, after what it counts."""
        self._counting.shutdown(wait=True, cancel_futures=True)

    @property
    def unmeasured(self) -> dict[str, str]:
        """Why the drift of a role is not measured; empty if it is of all, or if none is to be watched."""
        if not self._config.requests_per_second:
            return {}
        missing = [role for role, student in self._students.answering.items() if student.reference is None]
        return dict.fromkeys(missing, NO_REFERENCE)

    def show(self) -> None:
        """Show the drift of each student now."""
        for role, student in self._students.answering.items():
            drift = self._drift_of(role, student)
            if self._config.requests_per_second:
                self._metrics.drift.measured(role, drift is not None)
            self._metrics.drift.drift(role, {} if drift is None else drift.drift(self._clock()))

    def scored(self, student: ServedStudent, asked: ScoreRequest, probabilities: Probabilities) -> None:
        """Watch an answer of ``/score``."""
        if self._thinning.chosen():
            rows = _few(len(asked.texts))
            pairs = [] if asked.pairs is None else [asked.pairs[row] for row in rows]
            scores = student.student.scores(probabilities[rows])
            self._count(student, Watched("score", [asked.texts[row] for row in rows], pairs, scores))

    def ranked(self, student: ServedStudent, asked: RankRequest, found: Ranked) -> None:
        """Watch an answer of ``/rank``."""
        query, titles, products = asked.query, asked.titles, asked.products
        if self._thinning.chosen():
            self._count(student, _ranking("rank", query, titles or [], found.scores))

        async def ask(shadow: ServedStudent) -> Callable[[], Agreement]:
            if products is not None:
                other = await shadow.rank_products(query, products)
            else:
                other = await shadow.rank(query, titles or [])
            return partial(rankings_agree, found.scores, other.scores)

        self._offer("rank", student, ask, of_index=products is not None)

    def recommended(self, student: ServedStudent, asked: RecommendRequest, found: Ranked) -> None:
        """Watch an answer of ``/recommend``."""
        history, titles = asked.history, asked.titles
        if self._thinning.chosen():
            self._count(student, _ranking("recommend", history_text(history), titles, found.scores))

        async def ask(shadow: ServedStudent) -> Callable[[], Agreement]:
            other = await shadow.recommend(history, titles)
            return partial(rankings_agree, found.scores, other.scores)

        self._offer("recommend", student, ask)

    def searched(self, student: ServedStudent, asked: SearchRequest, hits: Sequence[Hit]) -> None:
        """Watch an answer of ``/search``. The scores of hits, the best of a catalogue, have no reference."""
        if self._thinning.chosen():
            self._count(student, Watched("search", [asked.query], [], np.zeros(0)))

        async def ask(shadow: ServedStudent) -> Callable[[], Agreement]:
            other = await shadow.search(asked.query, asked.k, asked.candidates)
            return partial(hits_agree, [hit.id for hit in hits], [hit.id for hit in other])

        self._offer("search", student, ask, of_index=True)

    async def _show_often(self) -> NoReturn:
        while True:
            self.show()
            await asyncio.sleep(_SHOW_SECONDS)

    def _offer(self, route: str, student: ServedStudent, ask: Ask, of_index: bool = False) -> None:
        """Offer a request to the shadow. of_index: only a shadow with an index can answer it."""
        if self._shadow is not None and student is self._students.current() and (self._shadow_searches or not of_index):
            self._shadow.offer(route, ask)

    def _count(self, student: ServedStudent, watched: Watched) -> None:
        role = next((role for role, one in self._students.answering.items() if one is student), None)
        drift = None if role is None else self._drift_of(role, student)
        if role is None or drift is None or self._pending >= _PENDING:
            return
        self._pending += 1
        counting = asyncio.get_running_loop().run_in_executor(self._counting, drift.count, watched, self._clock())
        counting.add_done_callback(partial(self._counted, role))

    def _counted(self, role: Role, counting: "asyncio.Future[dict[str, tuple[int, int]]]") -> None:
        self._pending -= 1
        if counting.cancelled():
            return
        if (error := counting.exception()) is not None:  # its message may quote a text
            _log.error("a request could not be watched: %s", type(error).__name__)
            return
        for part, (features, unseen) in counting.result().items():
            self._metrics.drift.features(role, part, features, unseen)

    def _drift_of(self, role: Role, student: ServedStudent) -> StudentDrift | None:
        """Return the window of the student in a role, a new one if the student is new; None without a reference."""
        known = self._drifts.get(role)
        if known is not None and known[0] is student:
            return known[1]
        drift = None
        if student.reference is not None:
            drift = StudentDrift(student, *student.reference, self._config.window_seconds)
            self._metrics.drift.reference(role, drift.shares, drift.features.ceiling)
        self._drifts[role] = student, drift
        return drift


def _few(count: int) -> list[int]:
    return list(range(count)) if count <= TEXTS else random.sample(range(count), TEXTS)


def _ranking(route: str, text: str, titles: Sequence[str], scores: Scores) -> Watched:
    rows = _few(len(scores))
    return Watched(route, [text], [titles[row] for row in rows] if titles else [], scores[rows])
