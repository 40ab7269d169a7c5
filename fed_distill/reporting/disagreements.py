"""``disagreements.json`` of a run: the proxy examples on which teacher and student disagree most, and why.

The measure is the Jensen-Shannon divergence of their class probabilities in bits, from 0 (equal) to 1 (Lin, "Divergence
measures based on the Shannon entropy", IEEE Transactions on Information Theory 37, 1991, eq. 4.1 with equal weights).
The file has texts of the proxy set, which every participant of a run holds, and of nothing else: no merchant's private
example, and no true label.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from fed_distill.data.examples import Examples, Task
from fed_distill.errors import CheckpointError, ModelError
from fed_distill.models import TextModel, predict
from fed_distill.models.towers import Towers
from fed_distill.models.word_contributions import WordContribution, explain_vectors
from fed_distill.storage.files import strict_json

DISAGREEMENTS = "disagreements.json"
_MOST_COMPARED = 10_000
"""Proxy examples that are compared, so that a report takes seconds: of a larger set, evenly spaced ones."""
_WORDS = 3
"""Words of each text that are shown: those of the largest contributions."""
_DIGITS = 6


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Word(_Part):
    """A word and what it adds to the student's score, the expected gain."""

    text: str
    contribution: float


class Disagreement(_Part):
    """One example. teacher, student: probabilities of the classes. divergence: bits. words: those that contribute most
    to the student's score, by text; empty if the student has no towers, or the task no gains."""

    text: str
    pair: str | None
    teacher: list[float]
    student: list[float]
    divergence: float
    words: list[list[Word]]


class Disagreements(_Part):
    """classes: in the order of all probabilities. proxy: size of the proxy set. compared: number of its examples that
    were compared. mean: their mean divergence, bits. agree: share of them with the same most probable class. examples:
    of the largest divergence, largest first."""

    classes: list[str]
    proxy: int
    compared: int
    mean: float
    agree: float
    examples: list[Disagreement]


def disagreements(student: TextModel, task: Task, proxy: Examples, labels: Tensor, most: int) -> Disagreements:
    """Compare a student with the teacher's labels of the proxy set.

    :param labels: the teacher's probabilities, float32 ``[proxy, classes]``
    :param most: number of examples that are listed; those of equal divergence in the order of the proxy set
    """
    student = copy.deepcopy(student).eval()
    rows = np.unique(np.linspace(0, len(proxy) - 1, min(len(proxy), _MOST_COMPARED)).round().astype(np.int64))
    compared, taught = proxy.take(rows), labels[torch.from_numpy(rows)].double().numpy()
    predicted = predict(student, student.encode(compared.texts, compared.pairs)).double().numpy()
    bits = divergence(taught, predicted)
    listed = []
    for row in np.argsort(-bits, kind="stable")[:most]:
        text, pair = compared.texts[row], None if compared.pairs is None else compared.pairs[row]
        listed.append(
            Disagreement(
                text=text,
                pair=pair,
                teacher=_rounded(taught[row]),
                student=_rounded(predicted[row]),
                divergence=round(float(bits[row]), _DIGITS),
                words=_words(student, task, text, pair),
            )
        )
    return Disagreements(
        classes=list(task.classes),
        proxy=len(proxy),
        compared=len(compared),
        mean=round(float(bits.mean()), _DIGITS),
        agree=round(float(np.mean(taught.argmax(axis=1) == predicted.argmax(axis=1))), _DIGITS),
        examples=listed,
    )


def divergence(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Jensen-Shannon divergence of each row in bits, float64 ``[n]``.

    :param one, other: probabilities ``[n, classes]``
    """
    distance = jensenshannon(one, other, base=2.0, axis=1)  # its square root; NaN where rounding makes it negative
    found: npt.NDArray[np.float64] = np.nan_to_num(distance, nan=0.0) ** 2
    return found


def _words(student: TextModel, task: Task, text: str, pair: str | None) -> list[list[Word]]:
    if task.gains is None or pair is None or not isinstance(student, Towers):
        return []
    try:
        found = explain_vectors(student, torch.tensor(task.gains), text, pair)
    except ModelError:  # a custom student, of whose features no words are known
        return []
    return [_largest(words) for words in (found.query_words, found.title_words)]


def _largest(words: Sequence[WordContribution]) -> list[Word]:
    ordered = sorted(words, key=lambda word: -abs(word.contribution))[:_WORDS]
    return [Word(text=word.text, contribution=round(word.contribution, _DIGITS)) for word in ordered]


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def written(found: Disagreements) -> str:
    """Return the content of the file."""
    return strict_json(found.model_dump(), DISAGREEMENTS, indent=1) + "\n"


def read_disagreements(folder: Path) -> Disagreements | None:
    """Return what a run has; None for a run that lists none, or of a version that did not write the file.

    :raises CheckpointError: the file is damaged
    """
    path = folder / DISAGREEMENTS
    if not path.exists():
        return None
    try:
        return Disagreements.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: restore a copy of it, or delete it and resume the run") from error
