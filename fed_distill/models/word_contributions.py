"""Contributions of words to the score that a two-tower or static student gives a pair of texts, the expected gain.

Integrated gradients (Sundararajan et al., ICML 2017, eq. 1): the gradient of the score is averaged on the straight line
from a baseline to the input, times the difference of both. Contributions sum to the score minus that of the baseline
(completeness, proposition 1).

A text's vector is a sum of feature rows, divided by its length. The line runs from the zero vectors, which two texts
without features have, to the vectors of both texts, so that a feature contributes the product of its part of the vector
and the average gradient. A word's contribution is the sum of its own row's and of its n-grams', none of which crosses a
word's end. The texts' lengths are constants, so that contributions do not tell what a word does by lengthening the
vector.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fed_distill.errors import ModelError
from fed_distill.models.static import Static
from fed_distill.models.towers import Towers
from fed_distill.models.two_tower import TwoTower
from fed_distill.text.words import Span, gap_spans, word_spans

_STEPS = 4096
"""Points on the line at first; doubled while contributions miss the score by more than the tolerance."""
_MOST_STEPS = 2**16
_TOLERANCE = 2e-5


class WordContribution(NamedTuple):
    """text: the characters from ``start`` to before ``stop``. contribution: what the word adds to the score."""

    text: str
    start: int
    stop: int
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """query, title: the texts as they are scored, to which the words' positions refer. score: expected gain. baseline:
    score of the baseline, two texts without words. query_words, title_words: in order of the texts. residual: score
    minus baseline minus all contributions, the error of the average over the line."""

    query: str
    title: str
    score: float
    baseline: float
    query_words: tuple[WordContribution, ...]
    title_words: tuple[WordContribution, ...]
    residual: float


class FeatureWord(NamedTuple):
    """A word, or what stands for one. span: its characters. rows: the table rows of its features, int64 ``[n]``."""

    span: Span
    rows: Tensor


def feature_words(model: Towers, text: str) -> list[FeatureWord]:
    """Return the words of ``text`` with their features, which together are those of the text, each once.

    If white space does not separate what normalization joins, or a word's features depend on its neighbours, the parts
    between white space stand for words, or else the text.

    :raises ModelError: the encoding of ``model`` is not known
    """
    ids = model.encode([text], None)["text_ids"][0].long()
    if isinstance(model, Static):
        spans = [(word.start, word.stop) if word else (0, 0) for word in model.tokens.bag_words(text)]
        return [FeatureWord(span, ids[torch.tensor([one == span for one in spans])]) for span in dict.fromkeys(spans)]
    if not isinstance(model, TwoTower):
        raise ModelError(f"features of a {type(model).__name__} have unknown words: only built-in students have")
    kept = Counter(ids[ids > 0].tolist())
    for spans in (word_spans(text), gap_spans(text)):
        words = _hashed_words(model, text, spans, kept)
        if sum(len(word.rows) for word in words) == kept.total():
            return words
    return [FeatureWord((0, len(text)), ids[ids > 0])]


def _hashed_words(model: TwoTower, text: str, spans: Sequence[Span], kept: Counter[int]) -> list[FeatureWord]:
    """Return the features of each span that the text's encoding has ``kept``, which drops n-grams of a long text."""
    left = kept.copy()
    words = []
    for start, stop in spans:
        rows = []
        for row in model.encode([text[start:stop]], None)["text_ids"][0].tolist():
            if left[row] > 0:
                left[row] -= 1
                rows.append(row)
        words.append(FeatureWord((start, stop), torch.tensor(rows, dtype=torch.int64)))
    return words


def explain_vectors(model: Towers, gains: Tensor, query: str, title: str) -> Explanation:
    """Return the contributions of the words of two cleaned texts to their score.

    :param gains: gain of each class, float32 ``[classes]``
    :raises ModelError: the encoding of ``model`` is not known
    """
    words = [feature_words(model, text) for text in (query, title)]
    with torch.no_grad():
        parts = [_word_vectors(model, one) for one in words]
        vectors = [part.sum(dim=0, keepdim=True) for part in parts]
        score = float(expected_gain(model.score(*vectors), gains))
        baseline = float(expected_gain(model.score(*map(torch.zeros_like, vectors)), gains))
    steps = _STEPS
    while True:
        gradients = _mean_gradients(model, gains, vectors[0], vectors[1], steps)
        found = [part @ gradient for part, gradient in zip(parts, gradients, strict=True)]
        residual = score - baseline - float(sum(one.sum() for one in found))
        if abs(residual) <= _TOLERANCE or steps == _MOST_STEPS:
            break
        steps *= 2
    shares = [
        tuple(
            WordContribution(text[word.span[0] : word.span[1]], *word.span, float(value))
            for word, value in zip(one, values.tolist(), strict=True)
        )
        for text, one, values in zip((query, title), words, found, strict=True)
    ]
    return Explanation(query, title, score, baseline, shares[0], shares[1], residual)


def _word_vectors(model: Towers, words: Sequence[FeatureWord]) -> Tensor:
    """Return the part of the text's unit vector of each word, ``[words, width]``."""
    if not words:
        return torch.zeros(1, model.width)[:0]
    nothing = torch.zeros(1, model.width)  # of a word whose features were all beyond the text's maximum
    sums = torch.cat([model.bag(word.rows[None]) if len(word.rows) else nothing for word in words])
    length = torch.linalg.vector_norm(sums.sum(dim=0)).clamp_min(1e-6)
    parts: Tensor = sums / length
    return parts


def _mean_gradients(model: Towers, gains: Tensor, query: Tensor, title: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the gradient of the score by both vectors, averaged over midpoints of the line from 0, each
    ``[width]``."""
    at = ((torch.arange(steps) + 0.5) / steps)[:, None]
    query_points, title_points = (at * query).requires_grad_(), (at * title).requires_grad_()
    with torch.enable_grad():
        total = expected_gain(model.score(query_points, title_points), gains).sum()
        by_query, by_title = torch.autograd.grad(total, (query_points, title_points))
    return by_query.mean(dim=0), by_title.mean(dim=0)


def expected_gain(logits: Tensor, gains: Tensor) -> Tensor:
    """Return the expected gain of each row of ``logits`` ``[n, classes]``, float32 ``[n]``."""
    return torch.softmax(logits.float(), dim=-1) @ gains
