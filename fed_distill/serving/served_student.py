"""A student in service: an export that was checked on this machine, with its cache and its batches."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fed_distill.data.cleaning import clean_served, clean_text
from fed_distill.data.student_description import DESCRIPTION
from fed_distill.data.tasks import HISTORY_SEPARATOR, RECOMMEND
from fed_distill.errors import DataError, ModelError
from fed_distill.serving.batched_scoring import BatchedClassifier, BatchedTowers, Pairs
from fed_distill.serving.exported_folder import CONFORMANCE, EXPORT, VariantName, read_inside
from fed_distill.serving.runtime import ExportedStudent, load_exported
from fed_distill.serving.scorer import Probabilities, Ranked, Vectors, ranked
from fed_distill.serving.service_config import LimitsTable
from fed_distill.serving.service_metrics import ServiceMetrics
from fed_distill.text.encoders import TOKENIZER

_MOST_JSON = 1 << 26
_ROUNDING = 1e-5
"""By which a variant's difference on this machine may exceed the one that was measured when it was exported."""


@dataclass(frozen=True)
class LoadedStudent:
    """An export whose probabilities are those of ``conformance.json``. version: of its files and its variant."""

    student: ExportedStudent
    version: str


def load_checked(folder: Path, variant: VariantName, threads: int) -> LoadedStudent:
    """Load an export and check that it computes here what it computed when it was written.

    :raises ConfigError: onnxruntime is not installed, or there is no such variant
    :raises ModelError: a file is missing, damaged or of another student, or probabilities differ
    """
    version = student_version(folder, variant)
    student = load_exported(folder, variant, threads)
    _check_conformance(folder, student)
    return LoadedStudent(student, version)


def student_version(folder: Path, variant: str) -> str:
    """Return twelve hexadecimal digits that name the content of an export; graphs count by their hashes in it."""
    digest = hashlib.sha256(variant.encode())
    for name in (EXPORT, DESCRIPTION, TOKENIZER):
        if name != TOKENIZER or (folder / name).exists():
            digest.update(hashlib.sha256(read_inside(folder, name, _MOST_JSON)).digest())
    return digest.hexdigest()[:12]


def _check_conformance(folder: Path, student: ExportedStudent) -> None:
    path = folder / CONFORMANCE
    try:
        content = json.loads(read_inside(folder, CONFORMANCE, _MOST_JSON))
        examples, allowed = content["examples"], float(content["tolerance"])
        texts = [one["text"] for one in examples]
        pairs = [one["pair"] for one in examples] if student.task.pair else None
        expected = np.array([one["probabilities"] for one in examples], dtype=np.float64)
        if not texts or expected.shape != (len(texts), len(student.classes)):
            raise ValueError(f"{len(texts)} texts have probabilities of shape {expected.shape}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; export the student again") from error
    measured = student.description.variants[student.variant].measured
    if student.variant != "float32" and measured is not None:
        allowed = measured.difference + _ROUNDING
    try:
        found = student.predict(texts, pairs)
    except DataError as error:
        raise ModelError(f"{path} is damaged: {error}; export the student again") from error
    difference = float(np.abs(found - expected).max())
    if not difference <= allowed:
        raise ModelError(
            f"{folder}: probabilities of variant {student.variant} differ from {CONFORMANCE} by {difference:.1e}, more "
            f"than {allowed:.1e}: export the student again"
        )


class ServedStudent:
    """Answers concurrent requests with one student. version: names it in answers and metrics."""

    def __init__(
        self, loaded: LoadedStudent, executor: Executor, limits: LimitsTable, cached: int, metrics: ServiceMetrics
    ) -> None:
        self.student, self.version = loaded.student, loaded.version
        scoring, width = self.student.scoring, self.student.scoring.width
        self._towers = None if width is None else BatchedTowers(scoring, width, executor, limits, cached, metrics)
        by_vectors = self._towers if self.student.task.pair else None
        self._scoring = by_vectors or BatchedClassifier(scoring, executor, limits, metrics)

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return self._scoring.batcher.waiting

    async def predict(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        """Do as ``Scorer.predict``.

        :raises DataError: as ``Scorer.predict``
        :raises Overloaded: too much is waiting
        """
        self.student.check_fields(texts, pairs)
        separator = HISTORY_SEPARATOR if self.student.task.name == RECOMMEND.name else None
        cleaned = self._clean(texts, "texts", separator)
        return await self._scoring.probabilities(Pairs(cleaned, None if pairs is None else self._clean(pairs, "pairs")))

    async def rank(self, query: str, titles: Sequence[str]) -> Ranked:
        """Do as ``Scorer.rank``; errors are those of ``predict``."""
        gains = self.student.gains
        cleaned = clean_text(query, "query", self.student.max_characters)
        found = await self._compared(cleaned, titles)
        return ranked(found.astype(np.float64) @ gains)

    async def recommend(self, history: Sequence[str], titles: Sequence[str]) -> Ranked:
        """Do as ``Scorer.recommend``; errors are those of ``predict``."""
        self.student.check_history(history)
        joined = HISTORY_SEPARATOR.join(self._clean(history, "history"))
        return ranked(self.student.scores(await self._compared(joined, titles)))

    async def vector(self, query: str) -> Vectors:
        """Return the vector of a query, float32 ``[width]``; errors are those of ``predict``."""
        if self._towers is None:
            raise DataError(
                f"a student {self.student.scoring.kind!r} has no vector of a single text, which a search needs"
            )
        return await self._towers.vector(clean_text(query, "query", self.student.max_characters))

    async def _compared(self, text: str, titles: Sequence[str]) -> Probabilities:
        return await self._scoring.probabilities(Pairs([text], self._clean(titles, "titles")))

    def _clean(self, texts: Sequence[str], name: str, separator: str | None = None) -> list[str]:
        return clean_served(texts, name, self.student.max_characters, separator)
