"""Token sequences for transformers and LSTMs: ``[CLS] text [SEP]`` or ``[CLS] text [SEP] pair [SEP]``, padded with 0.

Models trained from scratch use hashed word pieces, so that merchants need no vocabulary. Pretrained models bring their
own tokenizer as the text of a ``tokenizer.json``, which is part of the model's settings.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, takewhile
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from fed_distill.errors import ModelError
from fed_distill.text.hashing import CLS, PAD, SEP, Matrix, Rows, piece_rows, piece_specification
from fed_distill.text.word_memo import memo_for
from fed_distill.text.words import word_spans

SHORTEST, LONGEST = 8, 1 << 16
"""Bounds of the maximum number of tokens: special tokens and at least one of each text; more than any model reads."""
FEWEST_ROWS = SEP + 2
"""Rows of hashed word pieces: the reserved ones, and one for pieces."""


class TokenWord(NamedTuple):
    """The word that a token is, or is part of. text: 0, or 1 in the pair. start, stop: span of its characters."""

    text: int
    start: int
    stop: int


Fields = Mapping[str, npt.NDArray[np.signedinteger[Any]]]
"""Row-aligned arrays of encoded texts by field, each ``[n, ...]``; zero is padding. A model makes tensors of them."""


class Tokens(Protocol):
    """Encodes texts and pairs of texts as ``input_ids`` and, for pairs, ``segments``.

    Both are int64 ``[n, length]``. Segments are 1 for tokens of the text, 2 for those of the pair and 0 for padding.

    special: ids that do not represent text, such as padding. mask: id of the mask token.
    """

    special: frozenset[int]
    mask: int

    @property
    def specification(self) -> Mapping[str, Any]:
        """The algorithm and its parameters, JSON-ready (``docs/how-to/student.md``)."""

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Fields:
        """Encode ``n`` texts or pairs, truncated to the maximum length of this tokenizer."""

    def words(self, text: str, pair: str | None) -> "list[TokenWord | None]":
        """Return the word of each token of an encoded text or pair; None for tokens that are not of a text."""


class HashedTokens:
    """Hashes word pieces to ``rows`` ids; of a pair that is too long, the longer text is truncated first.

    [CLS] is also the mask token."""

    special = frozenset((PAD, CLS, SEP))
    mask = CLS

    def __init__(self, rows: int, max_length: int) -> None:
        """Create the tokenizer.

        :param rows: number of ids, the three reserved ones included
        :param max_length: maximum number of tokens, [CLS] and [SEP] included
        :raises ModelError: one of them is out of bounds
        """
        if rows < FEWEST_ROWS:
            raise ModelError(f"hashed word pieces need at least {FEWEST_ROWS} rows, not {rows:,}")
        _check_length(max_length, SHORTEST)
        self.rows, self.max_length = rows, max_length

    @property
    def specification(self) -> Mapping[str, Any]:
        """See ``Tokens``."""
        return piece_specification(self.rows, self.max_length)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Fields:
        """See ``Tokens``."""
        first = piece_rows(texts, self.rows, self.max_length)
        kept = first.astype(bool).sum(axis=1)
        if pairs is None:
            kept = np.minimum(kept, self.max_length - 2)
            ids = np.zeros((len(first), int(kept.max(initial=0)) + 2), dtype=np.int64)
            _place(ids, first, kept, np.ones_like(kept))
            ids[:, 0] = CLS
            ids[np.arange(len(ids)), kept + 1] = SEP
            return {"input_ids": ids}
        second = piece_rows(pairs, self.rows, self.max_length)
        kept_pair = second.astype(bool).sum(axis=1)
        budget = self.max_length - 3
        kept, kept_pair = (
            np.minimum(kept, np.maximum(budget - kept_pair, budget - budget // 2)),
            np.minimum(kept_pair, np.maximum(budget - kept, budget // 2)),
        )
        ids = np.zeros((len(first), int((kept + kept_pair).max(initial=0)) + 3), dtype=np.int64)
        _place(ids, first, kept, np.ones_like(kept))
        _place(ids, second, kept_pair, kept + 2)
        ids[:, 0] = CLS
        ids[np.arange(len(ids)), kept + 1] = SEP
        ids[np.arange(len(ids)), kept + kept_pair + 2] = SEP
        of_pair = np.arange(ids.shape[1]) > kept[:, None] + 1
        segments = np.where(ids > 0, np.where(of_pair, 2, 1), 0)
        return {"input_ids": ids, "segments": segments}

    def words(self, text: str, pair: str | None) -> list[TokenWord | None]:
        """See ``Tokens``."""
        encoded = self.encode([text], None if pair is None else [pair])
        kept = [int(encoded["input_ids"].shape[1]) - 2]
        if pair is not None:
            kept = [int((encoded["segments"] == segment).sum()) - special for segment, special in ((1, 2), (2, 1))]
        found: list[TokenWord | None] = [None]
        for number, (of_text, count) in enumerate(zip((text, pair or ""), kept, strict=False)):
            spans = word_spans(of_text)
            pieces = piece_rows([of_text[start:stop] for start, stop in spans], self.rows, self.max_length)
            counts = np.count_nonzero(pieces, axis=1)
            words = [
                TokenWord(number, *span) for span, length in zip(spans, counts, strict=True) for _ in range(length)
            ]
            found += [*words[:count], None]
        return found


class PretrainedTokens:
    """Wraps a Hugging Face tokenizer; the ids 0 and ``pad_id`` are swapped, so that 0 is padding."""

    def __init__(self, description: str, pad_id: int, max_length: int) -> None:
        """Create the tokenizer.

        :param description: text of a ``tokenizer.json``
        :param pad_id: id of the padding token in ``description``
        :param max_length: maximum number of tokens
        :raises ModelError: ``description`` is not a valid tokenizer, or ``max_length`` is out of bounds
        """
        _check_length(max_length, 1)
        try:
            self._tokenizer = Tokenizer.from_str(description)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ModelError(f"the model's tokenizer.json cannot be read: {error}") from error
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.no_padding()
        self._pad_id, self.max_length = pad_id, max_length
        self._memo = memo_for(description, self._bag)
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token for token, one in added.items() if one.special} | {pad_id}
        masks = [token for token, one in added.items() if one.content in ("[MASK]", "<mask>")]
        self.special = frozenset(self._placed(token) for token in special)
        self.mask = self._placed(next(iter(masks), max(special)))

    def __deepcopy__(self, memo: dict[int, object]) -> "PretrainedTokens":
        """Return this object: copies of a model share its tokenizer, which is immutable."""
        return self

    @property
    def specification(self) -> Mapping[str, Any]:
        """See ``Tokens``."""
        return {
            "algorithm": "tokenizer.json",
            "max_length": self.max_length,
            "special_tokens": True,
            "swapped_ids": [0, self._pad_id],
        }

    def _placed(self, token: int) -> int:
        return 0 if token == self._pad_id else self._pad_id if token == 0 else token

    @property
    def unknown(self) -> int | None:
        """Id of the token that stands for what the tokenizer does not know; None if it encodes every text."""
        token = getattr(self._tokenizer.model, "unk_token", "<unk>")  # a Unigram model has it, and does not tell
        number = None if token is None else self._tokenizer.token_to_id(token)
        return None if number is None else self._placed(number)

    def placed(self, ids: Rows) -> Rows:
        """Return the ids of tokens of the tokenizer as they are encoded, with 0 for padding."""
        return np.where(ids == self._pad_id, 0, np.where(ids == 0, self._pad_id, ids))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Fields:
        """See ``Tokens``."""
        batch = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self._tokenizer.encode_batch_fast(batch)
        ids = np.zeros((len(encodings), max((len(encoding.ids) for encoding in encodings), default=1)), dtype=np.int64)
        segments = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            segments[row, : len(encoding.ids)] = np.asarray(encoding.type_ids) + 1
        used = segments > 0
        ids = np.where(used, self.placed(ids), 0)
        encoded = {"input_ids": ids}
        return encoded if pairs is None else {**encoded, "segments": segments}

    def words(self, text: str, pair: str | None) -> list[TokenWord | None]:
        """See ``Tokens``."""
        return _words(self._tokenizer.encode(text) if pair is None else self._tokenizer.encode(text, pair))

    def bag_words(self, text: str) -> list[TokenWord | None]:
        """Return the word of each token of ``bags``."""
        return _words(self._tokenizer.encode(text, add_special_tokens=False))

    def bags(self, texts: Sequence[str]) -> Matrix:
        """Return the tokens of each text without special tokens, int32 ``[n, tokens]``, padded with 0."""
        found = [None if self._memo is None else self._memo.tokens(text) for text in texts]
        whole = [text for text, tokens in zip(texts, found, strict=True) if tokens is None]
        others = iter(self._tokenizer.encode_batch_fast(whole, add_special_tokens=False))
        bags = [next(others).ids if tokens is None else tokens[: self.max_length] for tokens in found]
        lengths = np.array([len(tokens) for tokens in bags], dtype=np.int64)
        ids = np.zeros((len(bags), int(lengths.max(initial=0)) or 1), dtype=np.int32)
        flat = np.fromiter(chain.from_iterable(bags), dtype=np.int64, count=int(lengths.sum()))
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = self.placed(flat)
        return ids

    def _bag(self, word: str) -> list[int]:
        """Return the ids of a word in the tokenizer."""
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    def alone(self, tokens: Rows) -> Fields:
        """Encode each of the ``tokens`` (ids of the tokenizer) as a text of its own, ``[CLS] token [SEP]``."""
        probe = self._tokenizer.encode("a")
        around = [(token, bool(special)) for token, special in zip(probe.ids, probe.special_tokens_mask, strict=True)]
        before = [token for token, _ in takewhile(itemgetter(1), around)]
        after = [token for token, _ in takewhile(itemgetter(1), reversed(around))][::-1]
        columns = [np.full_like(tokens, token) for token in before], [np.full_like(tokens, token) for token in after]
        ids = np.stack([*columns[0], tokens, *columns[1]], axis=1)
        return {"input_ids": self.placed(ids)}


def _check_length(max_length: int, least: int) -> None:
    if not least <= max_length <= LONGEST:
        raise ModelError(f"the maximum number of tokens must be {least} to {LONGEST:,}, not {max_length:,}")


def _words(encoding: Encoding) -> list[TokenWord | None]:
    found: list[TokenWord | None] = []
    for text, word in zip(encoding.sequence_ids, encoding.word_ids, strict=True):
        span = None if text is None or word is None else encoding.word_to_chars(word, text)
        found.append(None if text is None or span is None else TokenWord(text, *span))
    return found


def _place(ids: Rows, pieces: Matrix, kept: Rows, start: Rows) -> None:
    """Copy the first ``kept`` pieces of each row to position ``start`` of ``ids``."""
    column = np.arange(pieces.shape[1])
    row, source = np.nonzero(column < kept[:, None])
    ids[row, start[row] + source] = pieces[row, source]
