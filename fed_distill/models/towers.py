"""What the edge students share: one vector for each of two texts, and a small head that compares them.

A text's vector is a weighted mean of rows of one table, so that the vectors of a catalogue can be precomputed; only the
head combines both. Almost all weights are table rows, of which one merchant's data use a few thousand, so that
``narrowed`` reduces the model considerably.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill.models.bag import WeightedBag
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded

SPREAD = 0.1
"""Initial standard deviation of the table. As a text's vector is normalised, it only determines the angle by which a
step of given size turns it."""
SMALLEST = 1e-6
"""Smallest divisor of a text's vector: a text without features keeps the zero vector."""


class Comparing(TextModel):
    """A bag of table rows for each text, and a multilayer perceptron over both vectors; a subclass encodes texts as
    ``text_ids`` and, for pairs, ``pair_ids``: row numbers ``[n, features]``, 0 for padding."""

    vectors_of = ("text_ids", "pair_ids")

    def __init__(
        self, classes: int, pair: bool, rows: int, width: int, head_width: int, dropout: float, further: int = 0
    ) -> None:
        """Parameters as of the subclasses; further: number of further inputs of the head."""
        super().__init__()
        self.width = width
        fields = ("text_ids", "pair_ids") if pair else ("text_ids",)
        self.tables = {"bag.table": fields, "bag.importance": fields}
        self.bag = WeightedBag(rows, width, SPREAD)
        compared = (2 * width + 1 if pair else width) + further
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Sequential(nn.Linear(compared, head_width), nn.ReLU(), nn.Linear(head_width, classes))

    def vectors(self, ids: Tensor) -> Tensor:
        """Return a text's vector ``[batch, width]`` from its rows ``[batch, features]``, independent of other texts.

        It is the mean of the rows, weighted by exp(importance) and normalised to length 1. A text without features has
        the zero vector.
        """
        return F.normalize(self.bag(ids), dim=-1, eps=SMALLEST)

    def score(self, text: Tensor, pair: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of two texts' vectors."""
        logits: Tensor = self.head(self.compared(text, pair))
        return logits

    def compared(self, text: Tensor, pair: Tensor) -> Tensor:
        """Return the head's input for two texts' vectors: product, distance and cosine, ``[batch, 2 * width + 1]``.

        Products of unit vectors' entries are of order 1/width, and distances of order 1/sqrt(width): each is divided by
        the square root of its order, and remains below that of a cosine of similar texts, 1.
        """
        product = text * pair
        parts = [
            self.width**0.5 * product,
            self.width**0.25 * (text - pair).abs(),
            product.sum(dim=-1, keepdim=True),
        ]
        return torch.cat(parts, dim=-1)

    def read(self, vectors: Sequence[Tensor], batch: Encoded) -> Tensor:
        """Return the head's input for the vectors of one text or two, of a batch that may have further fields."""
        return self.compared(*vectors) if len(vectors) == 2 else self.width**0.5 * vectors[0]

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch; hidden states are the texts' vectors side by side and the head's hidden units, each
        ``[batch, 1, ...]``."""
        fields = [batch[name] for name in self.vectors_of if name in batch]
        vectors = [field if field.is_floating_point() else self.vectors(field) for field in fields]
        read = self.dropout(self.read(vectors, batch))
        if not hidden:
            return Outputs(self.head(read))
        first, activation, last = self.head
        units = activation(first(read))
        return Outputs(last(units), (torch.cat(vectors, dim=-1).unsqueeze(1), units.unsqueeze(1)))


class Towers(Comparing):
    """A text has the same vector on either side of a pair."""

    towers = True
