"""A recurrent student: a bidirectional LSTM over hashed word pieces, pooled by attention.

Text and pair form one sequence with a separator, as for transformers, so that states of the second depend on the first.
Pooling by a learned query follows Yang et al. 2016 (sec. 2.2).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fed_distill.config import Share
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded, as_tensors
from fed_distill.text.tokens import LONGEST, SHORTEST, HashedTokens

Size = Annotated[int, Field(ge=1)]
Rows = Annotated[int, Field(ge=16)]
Length = Annotated[int, Field(ge=SHORTEST, le=LONGEST)]


class LSTM(TextModel):
    """Embedding, one LSTM for each direction, attention pooling, linear head."""

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        rows: Rows = 8192,
        width: Size = 64,
        max_length: Length = 64,
        dropout: Share = 0.0,
    ) -> None:
        """rows: number of ids of word pieces. width: width of an embedding and of each direction's state. max_length:
        maximum number of tokens. dropout: dropout rate of embeddings and of the pooled state."""
        super().__init__()
        self.tables = {"words.weight": ("input_ids",)}
        self.tokens = HashedTokens(rows, max_length)
        self.words = nn.Embedding(rows, width, padding_idx=0)
        self.segments = nn.Embedding(3, width, padding_idx=0) if pair else None
        self.forwards = nn.LSTM(width, width, batch_first=True)
        self.backwards = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.Linear(2 * width, 1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(2 * width, classes)

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """See ``TextModel``."""
        return self.tokens.specification

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``input_ids`` and, for pairs, ``segments``: int64 ``[n, length]``, 0 for padding."""
        return as_tensors(self.tokens.encode(texts, pairs))

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch; hidden states are the embeddings and both directions' states."""
        ids = batch["input_ids"]
        used = ids > 0
        embedded = self.words(ids)
        if self.segments is not None:
            embedded = embedded + self.segments(batch["segments"])
        embedded = self.dropout(embedded)
        turn = _turned(used).unsqueeze(-1)
        ahead, _ = self.forwards(embedded)
        back, _ = self.backwards(embedded.gather(1, turn.expand_as(embedded)))
        states = torch.cat([ahead, back.gather(1, turn.expand_as(back))], dim=-1)
        scores = self.attention(states).squeeze(-1).masked_fill(~used, -torch.inf)
        pooled = torch.einsum("bl,blw->bw", torch.softmax(scores, dim=-1), states)
        return Outputs(
            self.head(self.dropout(pooled)), (embedded, states) if hidden else None, used if hidden else None
        )


def _turned(used: Tensor) -> Tensor:
    """Return indices that reverse each sequence without its padding: ``[batch, length]``."""
    position = torch.arange(used.shape[1], device=used.device)
    return torch.where(used, used.sum(dim=1, keepdim=True) - 1 - position, position)
