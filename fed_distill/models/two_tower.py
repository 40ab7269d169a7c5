"""The edge student over one hashed table of words and character n-grams, which needs no vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from fed_distill.config import Share
from fed_distill.models.towers import Towers
from fed_distill.text.encoded import Encoded, as_tensors
from fed_distill.text.hashing import bag_rows, bag_specification

Size = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=16)]
NGrams = tuple[Annotated[int, Field(ge=2, le=8)], ...]


class TwoTower(Towers):
    """Hashed words and character n-grams, averaged to a vector; a multilayer perceptron over both vectors."""

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        rows: Rows = 32_768,
        width: Size = 64,
        head_width: Size = 64,
        ngrams: NGrams = (3, 4),
        max_features: Size = 512,
        dropout: Share = 0.0,
    ) -> None:
        """rows: number of rows of the table, row 0 for padding. width: width of a text's vector. head_width: number of
        hidden units of the head.

        ngrams: lengths of the character n-grams. max_features: maximum number of features of a text. dropout: dropout
        rate of the head's input.
        """
        super().__init__(classes, pair, rows, width, head_width, dropout)
        self.rows, self.ngrams, self.max_features = rows, ngrams, max_features

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """See ``TextModel``."""
        return bag_specification(self.rows, self.ngrams, self.max_features)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``text_ids`` and, for pairs, ``pair_ids``: int32 ``[n, features]``, 0 for padding."""
        fields = {"text_ids": texts} if pairs is None else {"text_ids": texts, "pair_ids": pairs}
        return as_tensors(
            {name: bag_rows(values, self.rows, self.ngrams, self.max_features) for name, values in fields.items()}
        )
