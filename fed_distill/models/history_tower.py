"""A student that reads a history as a sequence of titles: a small transformer over their vectors (SASRec).

Each title of a history is a bag of hashed words and n-grams, so that a product that nobody has bought yet has a vector,
and the candidate is in the same table. The title as a whole is a feature too, so that the table can learn how popular
each product is, beside what its words say. The transformer reads the titles from the latest back; its output at the
latest title is the customer's vector. After Kang and McAuley 2018, "Self-attentive sequential recommendation" (ICDM,
sections III-A to III-D); a row of data has one next product, so that no causal mask is needed, and positions are
counted from the latest title.

A head compares the customer's vector with the candidate's. It also has what decides most baskets (Li et al. 2023, "A
next basket recommendation reality check", ACM TOIS): how often and how lately the candidate was bought, and its vector
alone, which tells how popular it is; and its cosine with each title.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fed_distill.config import Share
from fed_distill.data.tasks import HISTORY_SEPARATOR
from fed_distill.errors import ModelError
from fed_distill.models.towers import SMALLEST, Comparing
from fed_distill.models.two_tower import NGrams, Rows, Size
from fed_distill.text.encoded import Encoded, as_tensors
from fed_distill.text.hashing import bag_rows, bag_specification, text_rows, text_specification

_Integers = npt.NDArray[np.int16] | npt.NDArray[np.int32]
_MOST = 1000
"""Maximum number of purchases that are counted."""


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each after a layer norm and beside a residual connection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """width: of a vector. heads: number of attention heads. dropout: rate after each of both layers."""
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_units = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.mixed = nn.Linear(width, width)
        self.units, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, states: Tensor, used: Tensor) -> Tensor:
        """Return new states ``[batch, length, width]``; positions that are not ``used`` ``[batch, length]`` are not
        attended to."""
        read = self.before_attention(states)
        query, key, value = (self._split(layer(read)) for layer in (self.queries, self.keys, self.values))
        scores = torch.einsum("blhd,bmhd->bhlm", query, key) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~used[:, None, None, :], -torch.inf)
        found = torch.einsum("bhlm,bmhd->blhd", scores.softmax(dim=-1), value).flatten(2)
        attended: Tensor = states + self.dropout(self.mixed(found))
        changed: Tensor = self.dropout(self.last(F.relu(self.units(self.before_units(attended)))))
        return attended + changed

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], self.heads, -1)


class HistoryTower(Comparing):
    """Vectors of titles, a transformer over those of a history, and a multilayer perceptron over the customer's vector
    and the candidate's."""

    def __init__(
        self,
        classes: int,
        pair: bool,
        *,
        rows: Rows = 32_768,
        width: Size = 64,
        head_width: Size = 64,
        ngrams: NGrams = (4,),
        max_features: Annotated[int, Field(ge=2)] = 32,
        history: Size = 40,
        layers: Size = 1,
        heads: Size = 2,
        dropout: Share = 0.0,
    ) -> None:
        """rows: number of rows of the table, row 0 for padding. width: width of a title's vector. head_width: number of
        hidden units of the head. ngrams: lengths of the character n-grams. max_features: maximum number of features of
        a title, the whole title among them. history: number of distinct titles that are read, the latest ones. layers:
        number of transformer layers. heads: number of attention heads, which divides width. dropout: rate within the
        transformer and of the head's input."""
        if not pair:
            raise ModelError("a history-tower compares a history with a product: choose a task such as next-basket")
        if width % heads:
            raise ModelError(f"heads = {heads} of a history-tower must divide width = {width}")
        super().__init__(classes, pair, rows, width, head_width, dropout, history + 3 + width)
        self.rows, self.ngrams, self.max_features, self.history = rows, ngrams, max_features, history
        self.places = nn.Embedding(history + 1, width, padding_idx=0)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))

    @property
    def text_encoding(self) -> Mapping[str, Any]:
        """See ``TextModel``."""
        titles = {
            **bag_specification(self.rows, self.ngrams, self.max_features - 1),
            "algorithm": "hashed texts, words and n-grams",
            **text_specification(),
        }
        history = {
            "history": self.history,
            "separator": HISTORY_SEPARATOR,
            "order": "distinct, latest first",
            "pair_bought": "times in the whole history, and place of the last from the end",
            "most": _MOST,
        }
        return {**titles, **history}

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """``text_ids`` ``[n, history, features]``, distinct titles, the latest first, and ``pair_ids`` ``[n,
        features]``: int16 or int32, 0 for padding. ``pair_bought`` ``[n, 2]``: how often the candidate is in the
        history, and its last place from the end, 1 for the latest purchase and 0 without any: int16."""
        if pairs is None:
            raise ModelError("a history-tower needs a candidate for each history: pass pairs")
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}  # a history has several candidates
        bought = [_bought(text) for text in rows]
        asked = [rows[text] for text in texts]
        seen = [bought[row].get(pair, (0, 0)) for row, pair in zip(asked, pairs, strict=True)]
        return as_tensors(
            {
                "text_ids": self._histories(bought)[asked],
                "pair_ids": self._bags(pairs),
                "pair_bought": np.array(seen, dtype=np.int16).reshape(-1, 2),
            }
        )

    def vectors(self, ids: Tensor) -> Tensor:
        """Return vectors of titles, of length 1, ``[batch, width]``, for ``ids`` ``[batch, features]``.

        For histories, ``[batch, titles, features]``, return the customer's vector and those of the titles, 0 where
        there is none: ``[batch, (1 + history) * width]``.
        """
        ids = ids.int() if ids.dtype == torch.int16 else ids
        of_title = super().vectors
        if ids.dim() == 2:
            return of_title(ids)
        titles = torch.stack([of_title(ids[:, at]) for at in range(ids.shape[1])], dim=1)
        place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        used = ids.ne(0).any(dim=-1) | (place == 1)  # so that an empty history attends to something
        states = self.dropout(self.width**0.5 * titles + self.places(torch.where(used, place, 0)))
        for block in self.blocks:
            states = block(states, used)
        customer = F.normalize(states[:, 0], dim=-1, eps=SMALLEST)
        missing = self.history - titles.shape[1]
        return torch.cat([customer, F.pad(titles, (0, 0, 0, missing)).flatten(1)], dim=1)

    def read(self, vectors: Sequence[Tensor], batch: Encoded) -> Tensor:
        """Return the head's input, ``[batch, 3 * width + 4 + history]``: as of two texts for the customer's vector, the
        candidate's cosine with each title, the logarithms of how often and how lately it was bought, whether it was,
        and its vector."""
        text, pair = vectors
        customer, titles = text[:, : self.width], text[:, self.width :].view(len(text), self.history, self.width)
        cosines = torch.einsum("blw,bw->bl", titles, pair)
        bought = batch["pair_bought"]
        bought = F.pad(bought, (0, 2 - bought.shape[1])).to(cosines.dtype)
        parts = [self.compared(customer, pair), cosines, bought.log1p(), bought[:, :1].clamp(max=1.0)]
        return torch.cat([*parts, self.width**0.5 * pair], dim=-1)

    def _bags(self, texts: Sequence[str]) -> _Integers:
        words = bag_rows(texts, self.rows, self.ngrams, self.max_features - 1)
        return np.concatenate([text_rows(texts, self.rows), words], axis=1).astype(self._dtype)

    def _histories(self, bought: Sequence[Mapping[str, tuple[int, int]]]) -> _Integers:
        latest = [list(titles)[: self.history] for titles in bought]
        places = {title: at for at, title in enumerate(dict.fromkeys(itertools.chain.from_iterable(latest)), 1)}
        bags = self._bags(list(places))
        numbers = np.zeros((len(latest), max(map(len, latest), default=1)), np.int64)
        for row, titles in enumerate(latest):
            numbers[row, : len(titles)] = [places[title] for title in titles]
        return np.concatenate([np.zeros_like(bags[:1]), bags])[numbers]

    @property
    def _dtype(self) -> type[np.signedinteger[Any]]:
        """Histories are large: half the memory, where the numbers of rows fit."""
        return np.int16 if self.rows <= np.iinfo(np.int16).max + 1 else np.int32


def _bought(history: str) -> dict[str, tuple[int, int]]:
    """Return of each title of a history, the latest first, how often it is there and its last place from the end."""
    latest = history.split(HISTORY_SEPARATOR)[::-1]
    counts = Counter(latest)
    places: dict[str, int] = {}
    for place, title in enumerate(latest, 1):
        places.setdefault(title, place)
    return {title: (min(counts[title], _MOST), min(place, _MOST)) for title, place in places.items()}
