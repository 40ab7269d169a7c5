"""Scores of one student for many concurrent requests: its cache of vectors and its batches.

With towers, a request looks up the vectors of its texts, a batch computes those that are missing, each once, and then
the head for all pairs of the batch; without towers, a batch is one run of the classifier. Texts are cleaned already.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fed_distill.serving.batching import MicroBatcher
from fed_distill.serving.scorer import Probabilities, Scoring, Vectors
from fed_distill.serving.service_config import LimitsTable
from fed_distill.serving.vector_cache import VectorCache


class BatchMetrics(Protocol):
    """Where batches and lookups are counted."""

    def batch(self, rows: int) -> None:
        """Count a batch."""

    def cached(self, hits: int, misses: int) -> None:
        """Count lookups of vectors."""


@dataclass(frozen=True)
class Pairs:
    """Texts to be scored: ``texts`` ``[n]`` and ``pairs`` ``[n]``, or one text for all pairs, or no pairs."""

    texts: Sequence[str]
    pairs: Sequence[str] | None

    @property
    def rows(self) -> int:
        """Number of rows of the answer."""
        return len(self.texts if self.pairs is None else self.pairs)


@dataclass(frozen=True)
class VectorPairs:
    """Pairs by the vectors of their texts.

    vectors: of all texts and then all pairs, float32 ``[n, width]``. texts: number of the first. missing: rows whose
    vector is not known yet, with their text. compare: whether probabilities are wanted, or the vectors.
    """

    vectors: Vectors
    texts: int
    missing: dict[int, str]
    compare: bool


@dataclass(frozen=True)
class Computed:
    """Answer to ``VectorPairs``: rows, and the vectors that were missing, by text."""

    rows: Probabilities
    fresh: dict[str, Vectors]


class BatchedTowers:
    """Scores pairs by the vectors of a student with towers."""

    def __init__(
        self,
        scoring: Scoring,
        width: int,
        executor: Executor,
        limits: LimitsTable,
        cached: int,
        metrics: BatchMetrics,
    ) -> None:
        self._scoring, self._metrics = scoring, metrics
        self._cache = VectorCache(cached, width)
        self.batcher = MicroBatcher[VectorPairs, Computed](
            self._run, executor, limits.batch_rows, limits.queued_rows, metrics.batch
        )

    async def probabilities(self, pairs: Pairs) -> Probabilities:
        """Return class probabilities, float32 ``[n, classes]``; raise Overloaded."""
        vectors, missing = self._looked_up([*pairs.texts, *(pairs.pairs or ())])
        return await self._compute(VectorPairs(vectors, len(pairs.texts), missing, compare=True))

    async def compared(self, text: str, vectors: Vectors) -> Probabilities:
        """Return class probabilities of a text and each of ``vectors``, ``[n, width]``; raise Overloaded."""
        first, missing = self._looked_up([text])
        return await self._compute(VectorPairs(np.concatenate([first, vectors]), 1, missing, compare=True))

    async def vector(self, text: str) -> Vectors:
        """Return the vector of a text, float32 ``[width]``; raise Overloaded."""
        vectors, missing = self._looked_up([text])
        row: Vectors = (await self._compute(VectorPairs(vectors, 1, missing, compare=False)))[0]
        return row

    def _looked_up(self, texts: Sequence[str]) -> tuple[Vectors, dict[int, str]]:
        vectors, missing = self._cache.get(texts)
        self._metrics.cached(len(texts) - len(missing), len(missing))
        return vectors, {place: texts[place] for place in missing}

    async def _compute(self, job: VectorPairs) -> Probabilities:
        computed = await self.batcher.compute(job, len(job.vectors))
        if computed.fresh:
            self._cache.put(list(computed.fresh), list(computed.fresh.values()))
        return computed.rows

    def _run(self, jobs: Sequence[VectorPairs]) -> list[Computed]:
        fresh = list(dict.fromkeys(text for job in jobs for text in job.missing.values()))
        by_text = dict(zip(fresh, self._scoring.vectors(fresh), strict=True)) if fresh else {}
        for job in jobs:
            for place, text in job.missing.items():
                job.vectors[place] = by_text[text]
        compared = [job for job in jobs if job.compare]
        sides = [_sides(job) for job in compared]
        rows: Iterator[Probabilities] = iter(())
        if compared:
            left, right = (np.concatenate(side) for side in zip(*sides, strict=True))
            found = self._scoring.compared(left, right)
            rows = iter(np.split(found, np.cumsum([len(side[1]) for side in sides])[:-1]))
        return [
            Computed(next(rows) if job.compare else job.vectors, {text: by_text[text] for text in job.missing.values()})
            for job in jobs
        ]


class BatchedClassifier:
    """Scores texts or pairs by a student without towers, or of a task with one text."""

    def __init__(self, scoring: Scoring, executor: Executor, limits: LimitsTable, metrics: BatchMetrics) -> None:
        self._scoring = scoring
        self.batcher = MicroBatcher[Pairs, Probabilities](
            self._run, executor, limits.batch_rows, limits.queued_rows, metrics.batch
        )

    async def probabilities(self, pairs: Pairs) -> Probabilities:
        """Return class probabilities, float32 ``[n, classes]``; raise Overloaded."""
        return await self.batcher.compute(pairs, pairs.rows)

    def _run(self, jobs: Sequence[Pairs]) -> list[Probabilities]:
        texts = [text for job in jobs for text in _one_for_each(job)]
        pairs = None if jobs[0].pairs is None else [pair for job in jobs for pair in job.pairs or ()]
        found = self._scoring.probabilities(texts, pairs)
        return np.split(found, np.cumsum([job.rows for job in jobs])[:-1])


def _one_for_each(job: Pairs) -> Sequence[str]:
    return list(job.texts) * job.rows if len(job.texts) == 1 and job.rows != 1 else job.texts


def _sides(job: VectorPairs) -> tuple[Vectors, Vectors]:
    """Return the vectors of texts and pairs, each ``[n, width]``."""
    left, right = job.vectors[: job.texts], job.vectors[job.texts :]
    return (np.broadcast_to(left, right.shape) if job.texts == 1 else left), right
