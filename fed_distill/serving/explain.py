"""Why a student gives a query and a title their score: the contribution of each word of both texts.

Integrated gradients (Sundararajan et al., ICML 2017, eq. 1): the gradient of the score, the expected gain, is averaged
on the straight line from a baseline to the input, times the difference of both. Contributions sum to the score minus
that of the baseline (completeness, proposition 1).

Two-tower and static students: see ``models.word_contributions``. Others: the line runs over the embeddings of tokens,
from that of padding, with ``captum``.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fed_distill.data.cleaning import clean_text
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.lstm import LSTM
from fed_distill.models.towers import Towers
from fed_distill.models.transformer import Transformer
from fed_distill.models.word_contributions import Explanation, WordContribution, expected_gain, explain_vectors
from fed_distill.serving.student import Student
from fed_distill.text.encoded import Encoded
from fed_distill.text.tokens import TokenWord

_TOKEN_STEPS = (32, 64, 128, 256)
"""The same for embeddings, whose gradients cost a pass of the network each."""
_TOKEN_TOLERANCE = 1e-3
_TOKEN_BATCH = 32


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
        return explain_vectors(model, gains, query, title)
    return _explain_tokens(model, gains, query, title)


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
            return expected_gain(model(batch).logits, gains)
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
