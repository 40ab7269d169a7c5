"""A student in service: an export that was checked on this machine, with its cache and its batches."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fed_distill.data.cleaning import clean_served, clean_text
from fed_distill.data.student_description import DESCRIPTION, read_encoding
from fed_distill.data.tasks import HISTORY_SEPARATOR, history_text, undivided
from fed_distill.errors import DataError, ModelError
from fed_distill.serving.batched_scoring import BatchedClassifier, BatchedTowers, BatchMetrics, Pairs
from fed_distill.serving.explainer import Explainer
from fed_distill.serving.exported_folder import CONFORMANCE, EXPORT, MOST_DIFFERENCE, PRUNED, REFERENCE, read_inside
from fed_distill.serving.index import Hit, ProductIndex
from fed_distill.serving.index_files import load_index
from fed_distill.serving.reference import FeatureCounter, Reference, load_reference
from fed_distill.serving.runtime import ExportedStudent, load_exported
from fed_distill.serving.scorer import Probabilities, Ranked, Vectors, ranked
from fed_distill.serving.service_config import LimitsTable, StudentTable
from fed_distill.text.encoders import TOKENIZER, encoder_of

if TYPE_CHECKING:
    from fed_distill.models.word_contributions import Explanation

Found = TypeVar("Found")
_MOST_JSON = 1 << 26
_log = logging.getLogger(__name__)
_ROUNDING = 1e-5
"""By which a variant's difference on this machine may exceed the one that was measured when it was exported."""


@dataclass(frozen=True)
class LoadedStudent:
    """An export whose probabilities are those of ``conformance.json``, its index and its explainer, if any.

    version: of its files and its variant. reference: what traffic is compared with, and how its features are counted.
    """

    student: ExportedStudent
    version: str
    index: ProductIndex | None
    explainer: Explainer | None
    reference: tuple[Reference, FeatureCounter] | None


def load_checked(table: StudentTable, threads: int) -> LoadedStudent:
    """Load an export and check that it computes here what it computed when it was written.

    :raises ConfigError: onnxruntime is not installed, or there is no such variant
    :raises DataError: the index is damaged, or of another student
    :raises ModelError: a file is missing, damaged or of another student, or probabilities differ
    """
    folder = table.student
    version = student_version(folder, table.variant)
    student = load_exported(folder, table.variant, threads)
    _check_conformance(folder, student)
    index = None if table.index is None else load_products(table.index, student)
    explainer = None if table.trained is None else Explainer.load(table.trained, student)
    return LoadedStudent(student, version, index, explainer, _reference(folder, student))


def load_products(folder: Path, student: ExportedStudent) -> ProductIndex:
    """Load an index of the student; raise DataError if it is damaged, or of another student."""
    index = load_index(folder, student, student.digest)
    index.vectors(())  # finds the rows of its products now, not in a request
    return index


def _reference(folder: Path, student: ExportedStudent) -> tuple[Reference, FeatureCounter] | None:
    found = load_reference(folder, student.description)
    if found is None:
        _log.info("%s has no %s: its drift is not measured; export it again with the run's data", folder, REFERENCE)
        return None
    encoding = read_encoding(folder)
    hashed = encoding["algorithm"] != TOKENIZER
    return found, FeatureCounter(encoder_of(encoding, folder), found.seen_rows, hashed)


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
        if student.variant == PRUNED and not all(PRUNED in one for one in examples):
            raise ValueError(f"it has no probabilities of the variant {PRUNED}, as an earlier version wrote it")
        own = PRUNED if student.variant == PRUNED else "probabilities"
        expected = np.array([one[own] for one in examples], dtype=np.float64)
        if not 0.0 <= allowed <= MOST_DIFFERENCE["float32"]:
            raise ValueError(f"tolerance is {allowed:g}, and must be at most {MOST_DIFFERENCE['float32']:g}")
        if not texts or expected.shape != (len(texts), len(student.classes)):
            raise ValueError(f"{len(texts)} texts have probabilities of shape {expected.shape}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}; export the student again") from error
    measured = student.description.variants[student.variant].measured
    if student.variant not in ("float32", PRUNED) and measured is not None:
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


def _vectors_of(index: ProductIndex, products: Sequence[str]) -> Vectors:
    """Return the vectors of products; the error names the place of an unknown id, as the id itself may be personal."""
    unknown = [place for place, id in enumerate(products) if id not in index]
    if unknown:
        raise DataError(f"products[{unknown[0]}] is not in the index: leave it out")
    return index.vectors(products)


class ServedStudent:
    """Answers concurrent requests with one student. version: names it in answers and metrics. reference: what its
    traffic is compared with, if its export says so."""

    def __init__(
        self, loaded: LoadedStudent, executor: Executor, limits: LimitsTable, cached: int, metrics: BatchMetrics
    ) -> None:
        self.student, self.version, self.reference = loaded.student, loaded.version, loaded.reference
        scoring, width = self.student.scoring, self.student.scoring.width
        self._towers = None if width is None else BatchedTowers(scoring, width, executor, limits, cached, metrics)
        by_vectors = self._towers if self.student.task.pair else None
        self._scoring = by_vectors or BatchedClassifier(scoring, executor, limits, metrics)

        self._index, self._explainer, self._executor = loaded.index, loaded.explainer, executor

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch."""
        return self._scoring.batcher.waiting

    def use_index(self, index: ProductIndex) -> None:
        """Search another index from now on; requests in progress go on with the one before."""
        self._index = index

    async def predict(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        """Do as ``Scorer.predict``.

        :raises DataError: as ``Scorer.predict``
        :raises Overloaded: too much is waiting
        """
        self.student.check_fields(texts, pairs)
        separator = HISTORY_SEPARATOR if self.student.task.of_titles else None
        cleaned = self._clean(texts, "texts", separator)
        return await self._scoring.probabilities(Pairs(cleaned, None if pairs is None else self._clean(pairs, "pairs")))

    async def rank(self, query: str, titles: Sequence[str]) -> Ranked:
        """Do as ``Scorer.rank``; errors are those of ``predict``."""
        gains = self.student.gains
        self.student.check_query()
        cleaned = clean_text(query, "query", self.student.max_characters)
        found = await self._compared(cleaned, titles)
        return ranked(found.astype(np.float64) @ gains)

    async def recommend(self, history: Sequence[str], titles: Sequence[str]) -> Ranked:
        """Do as ``Scorer.recommend``; errors are those of ``predict``."""
        self.student.check_history(history)
        joined = history_text(self._clean(history, "history"))
        return ranked(self.student.scores(await self._compared(joined, [undivided(title) for title in titles])))

    async def rank_products(self, query: str, products: Sequence[str]) -> Ranked:
        """Rank products of the index by their ids; errors are those of ``search``, and DataError for an unknown id."""
        index, towers, gains = *self._searched(), self.student.gains
        cleaned = clean_text(query, "query", self.student.max_characters)
        vectors = await self._in_thread(_vectors_of, index, products)
        found = await towers.compared(cleaned, vectors)
        return ranked(found.astype(np.float64) @ gains)

    async def search(self, query: str, k: int, candidates: int) -> list[Hit]:
        """Do as ``ProductIndex.search``.

        :raises DataError: there is no index, or the query is too long
        :raises Overloaded: too much is waiting
        """
        index, towers = self._searched()
        vector = await towers.vector(clean_text(query, "query", self.student.max_characters))
        return await self._in_thread(index.search_vector, vector, k, candidates)

    async def explain(self, query: str, title: str) -> "Explanation":
        """Do as ``serving.explain.explain``.

        :raises DataError: there is no trained student, or a text is too long
        :raises Overloaded: too much is waiting
        """
        if self._explainer is None:
            raise DataError("this service cannot explain: set service.trained to the run of its student")
        return await self._explainer.explain(query, title)

    def _searched(self) -> tuple[ProductIndex, BatchedTowers]:
        if self._index is None or self._towers is None:
            raise DataError("this service has no index: set service.index to the folder of fed-distill index")
        return self._index, self._towers

    async def _in_thread(self, function: Callable[..., Found], *arguments: Any) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def _compared(self, text: str, titles: Sequence[str]) -> Probabilities:
        return await self._scoring.probabilities(Pairs([text], self._clean(titles, "titles")))

    def _clean(self, texts: Sequence[str], name: str, separator: str | None = None) -> list[str]:
        return clean_served(texts, name, self.student.max_characters, separator)
