"""A student of static token embeddings, distilled from the teacher's own.

As Model2Vec (Tulkens and van Dongen, MinishLab 2024): each token of the vocabulary passes through the teacher alone,
the mean of its last hidden states is its embedding, principal components reduce the width, and frequent tokens get less
weight. A text's vector is the weighted mean of its tokens' vectors; static embeddings of this form can keep most of the
quality of a sentence transformer (Aarsen and Reimers, "Train 400x faster static embedding models", 2025). Here they are
only a start: table, weights and head are then trained as those of ``two-tower``.

Weights follow smooth inverse frequency (Arora et al., ICLR 2017, eq. 5): a / (a + p) for a token of probability p. As
in Model2Vec they multiply the rows, and ``importance`` starts at 1 for all tokens: else the gradient of a frequent
token's row would be small too.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from sklearn.decomposition import PCA

from fed_distill.config import Share
from fed_distill.errors import ConfigError
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import represent
from fed_distill.models.towers import SPREAD, Towers
from fed_distill.models.transformer import Transformer
from fed_distill.text.encoded import Encoded, as_tensors
from fed_distill.text.tokens import PretrainedTokens
from fed_distill.text.wordpiece import TokenSet, Vocabulary

Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_BATCH = 1024
"""Tokens that pass through the teacher at once; each is a sequence of about three."""


class Static(Towers):
    """One row for each token of a tokenizer, averaged to a vector; a multilayer perceptron over both vectors."""

    kind = "fed_distill.models.static:Static"
    files: Mapping[str, str] = {"tokenizer": "tokenizer.json"}

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        tokenizer: str,
        rows: int,
        pad_id: int,
        width: int,
        head_width: int,
        max_tokens: int,
        dropout: float,
    ) -> None:
        """tokenizer: text of a ``tokenizer.json`` with ``rows`` tokens. pad_id: id of its padding token, which is row 0
        of the table, while token 0 is row ``pad_id``. Others as of ``static``."""
        super().__init__(classes, pair, rows, width, head_width, dropout)
        self.settings = {
            "classes": classes,
            "pair": pair,
            "tokenizer": tokenizer,
            "rows": rows,
            "pad_id": pad_id,
            "width": width,
            "head_width": head_width,
            "max_tokens": max_tokens,
            "dropout": dropout,
        }
        self.tokens = PretrainedTokens(tokenizer, pad_id, max_tokens)

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """See ``TextModel``."""
        return {**self.tokens.specification, "special_tokens": False}

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``text_ids`` and, for pairs, ``pair_ids``: int32 ``[n, tokens]`` without special tokens, 0 for padding."""
        fields = {"text_ids": texts} if pairs is None else {"text_ids": texts, "pair_ids": pairs}
        return as_tensors({name: self.tokens.bags(values) for name, values in fields.items()})


def static(
    classes: int,
    pair: bool,
    teacher: TextModel | None,
    texts: Sequence[str] | None,
    *,
    width: Size = 64,
    head_width: Size = 64,
    vocabulary: Vocabulary = "catalogue",
    sif: Positive = 1e-2,
    max_tokens: Size = 512,
    dropout: Share = 0.0,
) -> Static:
    """Build a student whose table has the teacher's static token embeddings; the head is drawn as usual.

    :param teacher: a pretrained transformer with a tokenizer
    :param texts: the server's texts, for the vocabulary and the tokens' frequencies; without any, frequencies follow
        Zipf's law, with the tokens' ids as ranks
    :param width: number of principal components, and width of a text's vector
    :param head_width: number of hidden units of the head
    :param vocabulary: see ``text.wordpiece.Vocabulary``
    :param sif: a of smooth inverse frequency; larger than for a language's text (1e-3), as the frequent tokens of a
        catalogue are brands and types of products
    :param max_tokens: maximum number of tokens of a text
    :param dropout: dropout rate of the head's input
    :raises ConfigError: the teacher has no tokenizer, or fewer tokens or dimensions than ``width``
    """
    if not isinstance(teacher, Transformer) or not isinstance(teacher.tokens, PretrainedTokens):
        given = "no teacher was given" if teacher is None else f"this {type(teacher).__name__} has no tokenizer"
        raise ConfigError(
            f"student 'static' requires a pretrained teacher with a tokenizer (minilm, or the folder of one): {given}"
        )
    tokens = TokenSet.of(teacher.settings["tokenizer"], vocabulary, texts)
    padding = int(np.searchsorted(tokens.former, int(teacher.settings["config"].get("pad_token_id") or 0)))
    student = Static(
        classes,
        pair,
        tokenizer=tokens.tokenizer,
        rows=len(tokens.former),
        pad_id=padding,
        width=width,
        head_width=head_width,
        max_tokens=max_tokens,
        dropout=dropout,
    )
    contextual = represent(teacher, as_tensors(teacher.tokens.alone(tokens.former)), _BATCH).numpy()
    used = np.arange(len(contextual)) != padding if tokens.counts is None else tokens.counts > 0
    probabilities = zipf(len(used)) if tokens.counts is None else tokens.counts / max(tokens.counts.sum(), 1)
    embeddings = principal_components(contextual, used, width) * sif_weights(probabilities, sif)[:, None]
    embeddings *= SPREAD / embeddings[used].std()
    rows = torch.from_numpy(student.tokens.placed(np.arange(len(used))))
    with torch.no_grad():
        student.bag.table[rows] = torch.from_numpy(embeddings).float()
        student.bag.table[0] = 0.0
    student.of_teacher = True
    return student


def principal_components(values: Matrix, fitted: Mask, width: int) -> Matrix:
    """Project ``values`` ``[n, dimensions]`` to ``width`` principal components, ``[n, width]``.

    :param fitted: rows that determine the centre and the components, bool ``[n]``: the tokens that the server's texts
        use, and not single characters that are kept to spell unknown words
    :raises ConfigError: ``width`` is larger than the number of these rows or of dimensions
    """
    most = min(int(fitted.sum()), values.shape[1])
    if width > most:
        raise ConfigError(
            f"student 'static': width {width} is too large for {int(fitted.sum())} tokens and {values.shape[1]} "
            f"dimensions of the teacher: set width to at most {most}"
        )
    exact = values.astype(np.float64)
    projected: Matrix = PCA(width, svd_solver="full").fit(exact[fitted]).transform(exact)
    return projected


def sif_weights(probabilities: Vector, a: float) -> Vector:
    """Return a / (a + p) for tokens of ``probabilities`` p (Arora et al. 2017, eq. 5)."""
    return a / (a + probabilities)


def zipf(tokens: int) -> Vector:
    """Return probabilities of Zipf's law for the ranks 1 ... ``tokens``: proportional to 1 / rank."""
    inverse = 1.0 / np.arange(1, tokens + 1)
    probabilities: Vector = inverse / inverse.sum()
    return probabilities
