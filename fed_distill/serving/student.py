"""A trained student in Python: class probabilities, rankings, recommendations and text vectors.

Texts are cleaned like the training data (``data.cleaning``), so that a text that is served equals one that was trained
on. Calls are in batches, on one device, without gradients, and give equal results for equal arguments.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fed_distill.data.cleaning import clean_served, clean_text
from fed_distill.data.tasks import HISTORY_SEPARATOR, RECOMMEND
from fed_distill.errors import DataError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import by_batches, predict
from fed_distill.models.student_folder import DESCRIPTION, MODEL, StudentDescription, load_saved_student
from fed_distill.models.towers import Towers
from fed_distill.registry import only_imports
from fed_distill.reporting.store import EXPERIMENT, STUDENT
from fed_distill.storage.fingerprint import fingerprint, hash_tensors

_CHUNK = 8192
"""Texts that are encoded at once: their tokens are held in memory."""
_BATCH = 256
"""Texts in one forward pass."""

Probabilities = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]


class Ranked(NamedTuple):
    """order: positions of the ``n`` titles from best to worst, int64 ``[n]``; of equal scores, the first title is
    first. scores: score of each title in the order given, float64 ``[n]``."""

    order: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


class Student:
    """A trained student and its task; ``load_student`` loads one.

    model: the network, in evaluation mode. task: name, classes, gains.

    >>> student = load_student("runs/quickstart")  # doctest: +SKIP
    >>> student.rank("usb-c hub", ["Anker 555 USB-C Hub", "HDMI cable 2 m"]).order  # doctest: +SKIP
    array([0, 1])
    """

    def __init__(self, model: TextModel, description: StudentDescription) -> None:
        self.model, self.task = model.eval(), description.task
        self._max_characters = description.max_characters

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of ``predict``."""
        return self.task.classes

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Probabilities:
        """Return class probabilities, float32 ``[n, classes]``.

        :param texts: first texts ``[n]``: queries, histories (titles joined by ``HISTORY_SEPARATOR``), titles, reviews
        :param pairs: second texts ``[n]``, exactly if the task has two texts
        :raises DataError: ``pairs`` are missing, superfluous or of another number; or a text is not a string, empty, or
            longer than those of the training data
        """
        if (pairs is not None) != self.task.pair:
            raise DataError(
                f"task {self.task.name!r} has pairs of texts: pass pairs, one for each text"
                if self.task.pair
                else f"task {self.task.name!r} has one text: leave pairs out"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts have {len(pairs):,} pairs: pass one pair for each text")
        separator = HISTORY_SEPARATOR if self.task.name == RECOMMEND.name else None
        cleaned = self._clean(texts, "texts", separator)
        return self._probabilities(cleaned, None if pairs is None else self._clean(pairs, "pairs"))

    def rank(self, query: str, titles: Sequence[str]) -> Ranked:
        """Rank ``titles`` for ``query`` by expected gain, ``sum_c p_c * gain_c``, the score by which the evaluation
        ranks.

        :raises DataError: the task has no gains, or a text is unusable (see ``predict``)
        """
        gains = self.gains
        cleaned = clean_text(query, "query", self._max_characters)
        probabilities = self._probabilities([cleaned] * len(titles), self._clean(titles, "titles"))
        return _ranked(probabilities.astype(np.float64) @ gains)

    def recommend(self, history: Sequence[str], titles: Sequence[str]) -> Ranked:
        """Rank ``titles`` for a shopper by the probability of "recommend".

        :param history: titles of the last clicks, oldest first
        :param titles: candidates ``[n]``
        :raises DataError: the student is of another task, the history is empty, or a text is unusable (see ``predict``)
        """
        if self.task.name != RECOMMEND.name:
            raise DataError(
                f"recommend requires a student of task {RECOMMEND.name!r}, and this one is of {self.task.name!r}: use "
                + ("rank" if self.task.gains else "predict")
            )
        if not len(history):
            raise DataError("history is empty: pass the titles of the last clicks")
        joined = HISTORY_SEPARATOR.join(self._clean(history, "history"))
        probabilities = self._probabilities([joined] * len(titles), self._clean(titles, "titles"))
        return _ranked(probabilities[:, self.task.positive_index].astype(np.float64))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vector of each text, float32 ``[n, width]``, of length 1; 0 for a text without any feature.

        The students ``two-tower`` and ``static`` have one tower for both texts, so that queries and titles are embedded
        alike. Vectors of titles can be stored; the cosine of two vectors is one of the inputs of the head, which
        ``rank`` uses, and not itself a trained score.

        :raises DataError: the student has no towers, or a text is unusable (see ``predict``)
        """
        model = self._towers()
        cleaned = self._clean(texts, "texts")
        return _by_chunks(
            len(cleaned),
            model.width,
            lambda rows: by_batches(
                model, model.encode(cleaned[rows], None), _BATCH, lambda batch: model.vectors(batch["text_ids"])
            ),
        )

    def score_vectors(self, query_vector: Vectors, title_vectors: Vectors) -> npt.NDArray[np.float64]:
        """Return the scores of ``rank`` by vectors that ``embed`` gave, float64 ``[n]``.

        :param query_vector: ``[width]``
        :param title_vectors: ``[n, width]``
        :raises DataError: the student has no towers, or its task no gains
        """
        model, gains = self._towers(), self.gains
        device = model.bag.table.device
        query = torch.from_numpy(query_vector).to(device)

        def compute(rows: slice) -> Tensor:
            titles = torch.from_numpy(title_vectors[rows]).to(device)
            with torch.no_grad():
                return torch.softmax(model.score(query.expand_as(titles), titles).float(), dim=-1).cpu()

        return _by_chunks(len(title_vectors), len(self.classes), compute).astype(np.float64) @ gains

    @property
    def digest(self) -> str:
        """Fingerprint of the network and its weights, which stored vectors of its texts belong to."""
        model, weights = self.model, hashlib.sha256()
        hash_tensors(weights, model.state_dict())
        return fingerprint(kind=model.kind, settings=dict(model.settings), weights=weights.hexdigest())

    @property
    def max_characters(self) -> int:
        """Longest text (of a history: longest title) that the student accepts."""
        return self._max_characters

    def _towers(self) -> Towers:
        if not isinstance(self.model, Towers):
            raise DataError(
                f"a student {self.model.kind!r} has no vector of a single text: vectors require 'two-tower' or 'static'"
            )
        return self.model

    @property
    def gains(self) -> npt.NDArray[np.float64]:
        """Gain of each class, float64 ``[classes]``; raise DataError if the task has none."""
        if self.task.gains is None:
            other = "recommend" if self.task.name == RECOMMEND.name else "predict"
            raise DataError(f"task {self.task.name!r} has no gains to rank by: use {other}")
        return np.asarray(self.task.gains, dtype=np.float64)

    def _clean(self, texts: Sequence[str], name: str, separator: str | None = None) -> list[str]:
        return clean_served(texts, name, self._max_characters, separator)

    def _probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        def compute(rows: slice) -> Tensor:
            encoded = self.model.encode(texts[rows], None if pairs is None else pairs[rows])
            return predict(self.model, encoded, _BATCH)

        return _by_chunks(len(texts), len(self.classes), compute)


def load_student(path: Path | str, imports: Sequence[str] = ()) -> Student:
    """Load a student from the folder of a run (``runs/NAME``) or from its folder ``student``.

    Nothing in the folder is unpickled, and no code is imported that the folder names, except built-in students and
    ``imports``.

    :param path: folder
    :param imports: import paths of custom students that may be loaded: ``package.module:Name``
    :raises ModelError: there is no student, it is damaged, or it was written by another version; the message has the
        remedy
    """
    path = Path(path)
    inside = path / STUDENT
    for folder in (path, inside):
        if (folder / DESCRIPTION).is_file():
            with only_imports(imports, "load_student(imports=...)"):
                return Student(*load_saved_student(folder))
    if (path / MODEL).is_file() or (inside / MODEL).is_file():
        experiments = [folder / EXPERIMENT for folder in (path, path.parent) if (folder / EXPERIMENT).is_file()]
        experiment = experiments[0] if experiments else f"RUN/{EXPERIMENT}"
        raise ModelError(
            f"{path} has a student without {DESCRIPTION}, of an earlier version of fed-distill: write it again with "
            f"fed-distill run {experiment} --resume"
        )
    if (path / EXPERIMENT).is_file():
        raise ModelError(
            f"the run in {path} has no student yet: finish it with fed-distill run {path / EXPERIMENT} --resume"
        )
    raise ModelError(f"{path} is neither the folder of a student ({DESCRIPTION}) nor that of a run ({EXPERIMENT})")


def _ranked(scores: npt.NDArray[np.float64]) -> Ranked:
    return Ranked(np.argsort(-scores, kind="stable").astype(np.int64), scores)


def _by_chunks(count: int, width: int, compute: Callable[[slice], Tensor]) -> npt.NDArray[np.float32]:
    """Return ``count`` rows that ``compute`` gives in chunks, float32 ``[count, width]``."""
    found = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        found[rows] = compute(rows).numpy()
    return found
