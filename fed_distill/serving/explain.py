"""Why a student gives a query and a title their score: the contribution of each word of both texts.

Integrated gradients (Sundararajan et al., ICML 2017, eq. 1): the gradient of the score, the expected gain, is averaged
on the straight line from a baseline to the input, times the difference of both. Contributions sum to the score minus
that of the baseline (completeness, proposition 1).

Two-tower and static students: a text's vector is a sum of feature rows, divided by its length. The line runs from the
zero vectors, which two texts without features have, to the vectors of both texts, so that a feature contributes the
product of its part of the vector and the average gradient. A word's contribution is the sum of its own row's and of its
n-grams', none of which crosses a word's end. The texts' lengths are constants, so that contributions do not tell what a
word does by lengthening the vector.

Others: the line runs over the embeddings of tokens, from that of padding, with ``captum``.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fed_distill.data.cleaning import clean_text
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.lstm import LSTM
from fed_distill.models.static import Static
from fed_distill.models.towers import Towers
from fed_distill.models.transformer import Transformer
from fed_distill.models.two_tower import TwoTower
from fed_distill.serving.student import Student
from fed_distill.text.encoded import Encoded
from fed_distill.text.tokens import TokenWord
from fed_distill.text.words import Span, gap_spans, word_spans

_STEPS = 4096
"""Points on the line at first; doubled while contributions miss the score by more than the tolerance."""
_MOST_STEPS = 2**16
_TOLERANCE = 2e-5
_TOKEN_STEPS = (32, 64, 128, 256)
"""The same for embeddings, whose gradients cost a pass of the network each."""
_TOKEN_TOLERANCE = 1e-3
_TOKEN_BATCH = 32


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


def explain(student: Student, query: str, title: str) -> Explanation:
    """Return the contributions of the words of ``query`` and ``title`` to their score, the expected gain.

    :raises DataError: the student's task has no gains, or a text is empty or too long
    :raises ModelError: the student is of a custom class, whose features or embeddings are unknown
    :raises ConfigError: the student is neither two-tower nor static, and captum is not installed
    """
    gains = torch.from_numpy(student.gains).float()
    query = clean_text(query, "query", student.max_characters)
    title = clean_text(title, "title", student.max_characters)
    model = student.model
    if isinstance(model, Towers):
        return _explain_vectors(model, gains, query, title)
    return _explain_tokens(model, gains, query, title)


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


def _explain_vectors(model: Towers, gains: Tensor, query: str, title: str) -> Explanation:
    words = [feature_words(model, text) for text in (query, title)]
    with torch.no_grad():
        parts = [_word_vectors(model, one) for one in words]
        vectors = [part.sum(dim=0, keepdim=True) for part in parts]
        score = float(_expected(model.score(*vectors), gains))
        baseline = float(_expected(model.score(*map(torch.zeros_like, vectors)), gains))
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
        total = _expected(model.score(query_points, title_points), gains).sum()
        by_query, by_title = torch.autograd.grad(total, (query_points, title_points))
    return by_query.mean(dim=0), by_title.mean(dim=0)


def _expected(logits: Tensor, gains: Tensor) -> Tensor:
    return torch.softmax(logits.float(), dim=-1) @ gains


def _explain_tokens(model: TextModel, gains: Tensor, query: str, title: str) -> Explanation:
    """Integrate over the embeddings of a copy of the network, whose embedding layer gets a hook."""
    model = copy.deepcopy(model)
    if isinstance(model, Transformer):
        layer: nn.Module = model.network.get_input_embeddings()
        padding = int(model.settings["config"].get("pad_token_id") or 0)
    elif isinstance(model, LSTM):
        layer, padding = model.words, 0
    else:
        raise ModelError(f"embeddings of a {type(model).__name__} are unknown: only built-in students are explained")
    encoded, owners = model.encode([query], [title]), model.tokens.words(query, title)
    embedded = _embedded(model, layer, encoded)
    of_text = torch.tensor([owner is not None for owner in owners])
    without_words = torch.where(of_text[None, :, None], layer.get_parameter("weight")[padding].detach(), embedded)

    def score(embeddings: Tensor) -> Tensor:
        handle = layer.register_forward_hook(lambda *_: embeddings)
        try:
            batch = {name: values.expand(len(embeddings), -1).contiguous() for name, values in encoded.items()}
            return _expected(model(batch).logits, gains)
        finally:
            handle.remove()

    integrated = _integrated_gradients()(score)
    for steps in _TOKEN_STEPS:
        attributed = integrated.attribute(
            embedded, without_words, n_steps=steps, method="riemann_middle", internal_batch_size=_TOKEN_BATCH
        )
        with torch.no_grad():
            full, baseline = float(score(embedded)), float(score(without_words))
        residual = full - baseline - float(attributed.sum())
        if abs(residual) <= _TOKEN_TOLERANCE:
            break
    totals: dict[TokenWord, float] = {}
    for owner, value in zip(owners, attributed[0].sum(dim=-1).tolist(), strict=True):
        if owner is not None:
            totals[owner] = totals.get(owner, 0.0) + value
    shares = [
        tuple(
            WordContribution(text[word.start : word.stop], word.start, word.stop, value)
            for word, value in totals.items()
            if word.text == number
        )
        for number, text in enumerate((query, title))
    ]
    return Explanation(query, title, full, baseline, shares[0], shares[1], residual)


def _embedded(model: TextModel, layer: nn.Module, encoded: Encoded) -> Tensor:
    """Return the output of the embedding layer, ``[1, length, width]``."""
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: found.append(output))
    with torch.no_grad():
        model(encoded)
    handle.remove()
    return found[0]


def _integrated_gradients() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ConfigError(
            "students other than two-tower and static are explained with the package captum: "
            "pip install 'fed-distill[explain]'"
        ) from error
    return IntegratedGradients
