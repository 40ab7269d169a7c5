"""What a trained student does for a caller: class probabilities, rankings, recommendations and text vectors.

Texts are cleaned like the training data (``data.cleaning``), so that a text that is served equals one that was trained
on. What computes the network is a ``Scoring``: torch (``serving.student``) or onnxruntime (``serving.runtime``).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fed_distill.data.campaign_cells import effects
from fed_distill.data.cleaning import clean_served, clean_text
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import HISTORY_SEPARATOR, history_text, undivided
from fed_distill.errors import DataError
from fed_distill.evaluation.with_words import with_bm25

Probabilities = npt.NDArray[np.float32]
Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


class Ranked(NamedTuple):
    """order: positions of the ``n`` titles from best to worst, int64 ``[n]``; of equal scores, the first title is
    first. scores: score of each title in the order given, float64 ``[n]``."""

    order: npt.NDArray[np.int64]
    scores: Scores


class Scoring(Protocol):
    """The network of a student, for texts that are cleaned already.

    kind: name of the student, as ``two-tower``. width: width of a text's vector; None without towers. digest:
    fingerprint of the trained network, to which stored vectors of its texts belong.
    """

    kind: str
    width: int | None

    @property
    def digest(self) -> str:
        """Return the fingerprint."""

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        """Return class probabilities, float32 ``[n, classes]``."""

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return the vector of each text, float32 ``[n, width]``; called for students with towers only."""

    def compared(self, vectors: Vectors, pair_vectors: Vectors) -> Probabilities:
        """Return class probabilities of texts by their vectors, each ``[n, width]``; called for students with towers
        and tasks of two texts only."""


class Scorer:
    """A trained student and its task, whatever computes its network.

    task: name, classes, gains.
    """

    def __init__(self, scoring: Scoring, description: StudentDescription) -> None:
        self._scoring, self.task = scoring, description.task
        self._max_characters = description.max_characters

    @property
    def scoring(self) -> Scoring:
        """The network, for texts that are cleaned already."""
        return self._scoring

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of ``predict``."""
        return self.task.classes

    @property
    def digest(self) -> str:
        """Fingerprint of the trained network, to which stored vectors of its texts belong."""
        return self._scoring.digest

    @property
    def max_characters(self) -> int:
        """Longest text (of a history: longest title) that the student accepts."""
        return self._max_characters

    @property
    def gains(self) -> Scores:
        """Gain of each class, float64 ``[classes]``; raise DataError if the task has none."""
        if self.task.gains is None:
            other = "recommend" if self.task.of_histories else "predict"
            raise DataError(f"task {self.task.name!r} has no gains to rank by: use {other}()")
        return np.asarray(self.task.gains, dtype=np.float64)

    @property
    def has_vectors(self) -> bool:
        """Whether each text has a vector of its own, which ``embed`` gives."""
        return self._scoring.width is not None

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Probabilities:
        """Return class probabilities, float32 ``[n, classes]``.

        :param texts: first texts ``[n]``: queries, histories (titles joined by ``HISTORY_SEPARATOR``), titles, reviews
        :param pairs: second texts ``[n]``, exactly if the task has two texts
        :raises DataError: ``pairs`` are missing, superfluous or of another number; or a text is not a string, empty, or
            longer than those of the training data
        """
        self.check_fields(texts, pairs)
        separator = HISTORY_SEPARATOR if self.task.of_titles else None
        cleaned = self._clean(texts, "texts", separator)
        return self._scoring.probabilities(cleaned, None if pairs is None else self._clean(pairs, "pairs"))

    def rank(
        self,
        query: str,
        titles: Sequence[str],
        *,
        bm25: Sequence[float] | None = None,
        bm25_weight: float | None = None,
    ) -> Ranked:
        """Rank ``titles`` for ``query`` by expected gain, ``sum_c p_c * gain_c``, the score by which the evaluation
        ranks; with scores of a search by words, by the sum of both (``ranked_with``).

        :param titles: candidates ``[n]``
        :param bm25: score of each title by a search by words ``[n]``
        :param bm25_weight: its weight in the sum with the log-odds of the gain, required with ``bm25``; the best in a
            run's validation is ``student.with_bm25.weight`` of its ``summary.json``
        :raises DataError: the task has no gains, or a text (see ``predict``) or ``bm25`` (``checked_bm25``) is unusable
        """
        gains = self.gains
        self.check_query()
        words = None
        if bm25 is not None or bm25_weight is not None:
            words = checked_bm25(bm25, bm25_weight, len(titles))
        cleaned = clean_text(query, "query", self._max_characters)
        probabilities = self._scoring.probabilities([cleaned] * len(titles), self._clean(titles, "titles"))
        found = ranked(probabilities.astype(np.float64) @ gains)
        return found if words is None else ranked_with(found, words)

    def recommend(self, history: Sequence[str], titles: Sequence[str]) -> Ranked:
        """Rank ``titles`` for a shopper by the probability of "recommend" or, for next baskets, of "bought";
        rank campaigns by their effect on the customer, the uplift, which is the score.

        :param history: titles of the last clicks or purchases, oldest first
        :param titles: candidates ``[n]``
        :raises DataError: the student is of another task, the history is empty, or a text is unusable (see ``predict``)
        """
        self.check_history(history)
        joined = history_text(self._clean(history, "history"))
        candidates = [undivided(title) for title in self._clean(titles, "titles")]
        return ranked(self.scores(self._scoring.probabilities([joined] * len(titles), candidates)))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vector of each text, float32 ``[n, width]``, of length 1; 0 for a text without any feature.

        The students ``two-tower`` and ``static`` have one tower for both texts, so that queries and titles are embedded
        alike. Vectors of titles can be stored, and ``score_vectors`` ranks by them; the cosine of two vectors is one of
        the inputs of the head, and not itself a trained score.

        :raises DataError: the student has no towers, or a text is unusable (see ``predict``)
        """
        self._check_towers("embed")
        return self._scoring.vectors(self._clean(texts, "texts"))

    def score_vectors(self, query_vector: Vectors, title_vectors: Vectors) -> Scores:
        """Return the score of each title, float64 ``[n]``: that of ``rank`` or ``recommend``, by vectors of ``embed``.

        :param query_vector: vector of the query or of the joined history, ``[width]``
        :param title_vectors: vectors of the titles, ``[n, width]``
        :raises DataError: the student has no towers, its task has no score of a pair, or a vector has another width
        """
        width = self._check_towers("score_vectors")
        if self.task.gains is None and not self.task.of_histories:
            raise DataError(
                f"task {self.task.name!r} has no score of a title for a query, so that nothing can be searched: use "
                "predict in Python, or /predict of the service"
            )
        titles = np.asarray(title_vectors, dtype=np.float32)
        query = np.asarray(query_vector, dtype=np.float32)
        if query.shape != (width,) or titles.ndim != 2 or titles.shape[1] != width:
            raise DataError(
                f"vectors of shapes {query.shape} and {titles.shape} must be ({width},) and (n, {width}): pass those "
                "of embed"
            )
        return self.scores(self._scoring.compared(np.broadcast_to(query, titles.shape), titles))

    def check_fields(self, texts: Sequence[str], pairs: Sequence[str] | None) -> None:
        """Raise DataError if ``pairs`` are missing, superfluous, or of another number than ``texts``."""
        if (pairs is not None) != self.task.pair:
            raise DataError(
                f"task {self.task.name!r} has pairs of texts: pass pairs, one for each text"
                if self.task.pair
                else f"task {self.task.name!r} has one text: leave pairs out"
            )
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts have {len(pairs):,} pairs: pass one pair for each text")

    def check_query(self) -> None:
        """Raise DataError if the first texts of the task are no queries."""
        if self.task.of_histories:
            raise DataError(f"task {self.task.name!r} ranks for a history, not for a query: use recommend")

    def check_history(self, history: Sequence[str]) -> None:
        """Raise DataError if the task reads no histories, or the history is empty."""
        if not self.task.of_histories:
            raise DataError(
                f"recommend requires a student of histories, and this one is of task {self.task.name!r}: use "
                + ("rank" if self.task.gains else "predict")
            )
        if not len(history):
            raise DataError("history is empty: pass the titles of the last clicks or purchases")

    def _check_towers(self, name: str) -> int:
        """Return the width of a text's vector; raise DataError, naming the method, without towers."""
        if self._scoring.width is None:
            raise DataError(
                f"a student {self._scoring.kind!r} has no vector of a single text: {name} requires 'two-tower' or "
                "'static'"
            )
        return self._scoring.width

    def scores(self, probabilities: Probabilities) -> Scores:
        """Return the score of each title, float64 ``[n]``, by the class probabilities of its pair, ``[n, classes]``."""
        if self.task.of_campaigns:
            return effects(probabilities)
        exact = probabilities.astype(np.float64)
        return exact[:, self.task.positive_index] if self.task.gains is None else exact @ self.gains

    def _clean(self, texts: Sequence[str], name: str, separator: str | None = None) -> list[str]:
        return clean_served(texts, name, self._max_characters, separator)


def ranked(scores: Scores) -> Ranked:
    """Return the ranking of titles by their scores, ``[n]``."""
    return Ranked(np.argsort(-scores, kind="stable").astype(np.int64), scores)


def checked_bm25(bm25: Sequence[float] | None, weight: float | None, titles: int) -> Scores:
    """Return ``weight`` times ``bm25``, float64 ``[titles]``.

    :raises DataError: one of both is missing, they are no numbers, there is not one score for each title, or one is not
        finite or, of the weight, below 0
    """
    if bm25 is None or weight is None:
        raise DataError("bm25 and bm25_weight belong together: give both or neither")
    try:
        words, factor = np.asarray(bm25, dtype=np.float64), float(weight)
    except (TypeError, ValueError) as error:
        raise DataError(f"bm25 must be numbers, and bm25_weight one: {error}") from error
    if words.shape != (titles,):
        raise DataError(f"bm25 has the shape {list(words.shape)} for {titles} titles: give one score for each title")
    with np.errstate(over="ignore", invalid="ignore"):
        weighted = factor * words
    if not np.isfinite(weighted).all() or not 0.0 <= factor < np.inf:
        raise DataError("scores in bm25 must be finite, also times bm25_weight, which must be at least 0")
    return weighted


def ranked_with(found: Ranked, weighted: Scores) -> Ranked:
    """Return the ranking by the log-odds of expected gains, ``found.scores``, plus ``weighted`` BM25, ``[n]``."""
    return ranked(with_bm25(found.scores, weighted, 1.0))
