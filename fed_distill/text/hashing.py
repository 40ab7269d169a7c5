"""Hash texts to rows of an embedding table.

Hashing needs no vocabulary, so there is none to train, to ship or to keep in sync between server and merchants. There
are two representations of a text: an unordered bag of words and character n-grams (for two-tower models), and a
sequence of word pieces (for transformers and LSTMs); a bag can have the whole text as a feature. They are computed over
the code points of a whole batch at once.

Bojanowski et al., "Enriching word vectors with subword information", TACL 2017, section 3.2.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.int32]

SEPARATOR, LETTER, DIGIT, IDEOGRAPH = 0, 1, 2, 3
"""Kinds of code points: separators, which are dropped; letters with their marks; digits; and characters that are words
of their own (Han, kana, emoji and other symbols)."""

PAD, CLS, SEP = 0, 1, 2
"""Reserved rows: no piece is hashed to them."""

WHOLE_PIECE = 6
"""Maximum length in characters of a word that is one piece; longer words are cut into pieces of ``CUT_PIECE``."""
CUT_PIECE = 4

_KANA = ((0x3040, 0x3100), (0x31F0, 0x3200))
_HAN = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)
_WORD_START, _WORD_END = 0x110000, 0x110001
_BASE = 0x9E3779B97F4A7C15
_CHUNK = 4096
_WORD, _UNIGRAM, _BIGRAM, _PIECE, _CONTINUATION, _TEXT = 101, 102, 103, 104, 105, 106
_SALT = 0xD1342543DE82EF95


def normalize(text: str) -> str:
    """Case-fold ``text`` and normalize it to Unicode NFKC."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def bag_rows(texts: Sequence[str], rows: int, ngrams: Sequence[int] = (3, 4), max_features: int = 512) -> Matrix:
    """Hash the words and character n-grams of each text to rows of a table.

    A word is a run of letters and digits, or of ideographs, after ``normalize``. N-grams do not cross word boundaries
    and include boundary marks; ideographs also yield unigrams and bigrams. Words come first, so that a text with more
    than ``max_features`` features loses n-grams. A feature that occurs twice is listed twice.

    :param texts: the texts
    :param rows: size of the table; features are hashed to rows 1 ... ``rows`` - 1, and 0 is padding
    :param ngrams: lengths of the n-grams in characters
    :param max_features: maximum number of features per text
    :returns: int32 ``[texts, features]``
    """
    return _each_once(texts, lambda chunk: _bag(chunk, rows, ngrams, max_features))


def text_rows(texts: Sequence[str], rows: int) -> Matrix:
    """Hash each text as a whole, all its words without what separates them, to one row of a table.

    :param texts: the texts
    :param rows: size of the table; texts are hashed to rows 1 ... ``rows`` - 1, and one without words has row 0
    :returns: int32 ``[texts, 1]``
    """

    def hashed(chunk: Sequence[str]) -> Matrix:
        characters = _Characters.read(chunk)
        owners, starts, lengths = np.unique(characters.texts, return_index=True, return_counts=True)
        found = np.zeros((len(chunk), 1), dtype=np.int32)
        found[owners, 0] = _row(_polynomial(characters.codes, starts, lengths), _TEXT, rows)
        return found

    return _each_once(texts, hashed)


def piece_rows(texts: Sequence[str], rows: int, max_pieces: int) -> Matrix:
    """Hash the word pieces of each text, in order, to rows of a table.

    A run of letters or of digits with up to ``WHOLE_PIECE`` characters is one piece, and a longer one is cut. An
    ideograph is a piece. A piece at the beginning of a word and an equal one inside a word have different hashes.

    :param texts: the texts
    :param rows: size of the table; pieces are hashed to rows 3 ... ``rows`` - 1
    :param max_pieces: maximum number of pieces per text
    :returns: int32 ``[texts, pieces]``, padded with 0
    """
    return _each_once(texts, lambda chunk: _pieces(chunk, rows, max_pieces))


def bag_specification(rows: int, ngrams: Sequence[int], max_features: int) -> dict[str, Any]:
    """Return the parameters and constants of ``bag_rows``, JSON-ready; ``docs/how-to/student.md`` has the algorithm."""
    return {
        "algorithm": "hashed words and n-grams",
        **_specification(rows, {"word": _WORD, "ideograph": _UNIGRAM, "ideographs": _BIGRAM}),
        "ngrams": list(ngrams),
        "max_features": max_features,
        "word_start": _WORD_START,
        "word_end": _WORD_END,
    }


def text_specification() -> dict[str, Any]:
    """Return the constants of ``text_rows`` beside those of ``bag_specification``, JSON-ready."""
    return {"text_salt": _TEXT}


def piece_specification(rows: int, max_length: int) -> dict[str, Any]:
    """Return the parameters and constants of ``piece_rows`` in sequences of ``max_length`` with special tokens."""
    return {
        "algorithm": "hashed word pieces",
        **_specification(rows, {"piece": _PIECE, "continuation": _CONTINUATION}),
        "max_length": max_length,
        "special": {"padding": PAD, "cls": CLS, "sep": SEP},
        "whole_piece": WHOLE_PIECE,
        "cut_piece": CUT_PIECE,
    }


def _specification(rows: int, salts: Mapping[str, int]) -> dict[str, Any]:
    """64-bit constants are hexadecimal, as many readers of JSON have no integers of that size."""
    return {
        "rows": rows,
        "unicode": unicodedata.unidata_version,
        "base": hex(_BASE),
        "salt_factor": hex(_SALT),
        "salts": dict(salts),
    }


@cache
def code_kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of every code point, uint8 ``[0x110000]``."""
    of_category = {"L": LETTER, "M": LETTER, "N": DIGIT}
    kinds = np.zeros(0x110000, dtype=np.uint8)
    for code in range(len(kinds)):
        category = unicodedata.category(chr(code))
        kinds[code] = IDEOGRAPH if category == "So" else of_category.get(category[0], SEPARATOR)
    for start, stop in _KANA + _HAN:
        kinds[start:stop][kinds[start:stop] == LETTER] = IDEOGRAPH
    kinds[_VARIATION_SELECTORS.start : _VARIATION_SELECTORS.stop] = SEPARATOR
    return kinds


@dataclass(frozen=True)
class _Characters:
    """Characters of a batch that belong to words.

    codes: code points. kinds: their kinds. texts: index of the text of each character. after_gap: whether a separator
    or the beginning of the text precedes it.
    """

    codes: Codes
    kinds: npt.NDArray[np.uint8]
    texts: Rows
    after_gap: npt.NDArray[np.bool_]

    @classmethod
    def read(cls, texts: Sequence[str]) -> "_Characters":
        normalized = [normalize(text) for text in texts]
        lengths = np.fromiter(map(len, normalized), dtype=np.int64, count=len(normalized))
        codes = np.frombuffer("".join(normalized).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        kinds = code_kinds()[codes]
        kept = np.flatnonzero(kinds)
        owner = np.repeat(np.arange(len(texts)), lengths)[kept]
        after_gap = np.ones(len(kept), dtype=np.bool_)
        after_gap[1:] = (kept[1:] - kept[:-1] > 1) | (owner[1:] != owner[:-1])
        return cls(codes[kept].astype(np.uint64), kinds[kept], owner, after_gap)


def _bag(texts: Sequence[str], rows: int, ngrams: Sequence[int], max_features: int) -> Matrix:
    characters = _Characters.read(texts)
    codes, owner = characters.codes, characters.texts
    ideograph = characters.kinds == IDEOGRAPH
    first = characters.after_gap.copy()
    first[1:] |= ideograph[1:] != ideograph[:-1]
    word = np.cumsum(first) - 1
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(codes)))

    features = [(owner[starts], _row(_polynomial(codes, starts, lengths), _WORD, rows))]
    pair = ideograph[:-1] & ~first[1:]
    features.append((owner[ideograph], _row(codes[ideograph], _UNIGRAM, rows)))
    features.append((owner[:-1][pair], _row(_window(codes, 2)[pair], _BIGRAM, rows)))

    marked = np.empty(len(codes) + 2 * len(starts), dtype=np.uint64)
    marked[starts + 2 * np.arange(len(starts))] = _WORD_START
    marked[starts + lengths + 2 * np.arange(len(starts)) + 1] = _WORD_END
    marked[np.arange(len(codes)) + 2 * word + 1] = codes
    marked_word = np.repeat(np.arange(len(starts)), lengths + 2)
    for size in ngrams:
        last = max(len(marked) - size + 1, 0)
        inside = marked_word[:last] == marked_word[len(marked) - last :]
        hashed = _row(_window(marked, size)[inside], size, rows)
        features.append((owner[starts][marked_word[:last][inside]], hashed))
    return _matrix(features, len(texts), max_features)


def _pieces(texts: Sequence[str], rows: int, max_pieces: int) -> Matrix:
    characters = _Characters.read(texts)
    kinds = characters.kinds
    new_word = characters.after_gap | (kinds == IDEOGRAPH)
    new_word[1:] |= kinds[1:] != kinds[:-1]
    starts = np.flatnonzero(new_word)
    lengths = np.diff(np.append(starts, len(kinds)))
    within = np.arange(len(kinds)) - np.repeat(starts, lengths)
    cut = (np.repeat(lengths, lengths) > WHOLE_PIECE) & (within % CUT_PIECE == 0)
    pieces = np.flatnonzero(new_word | cut)
    piece_lengths = np.diff(np.append(pieces, len(kinds)))
    salt = np.where(new_word[pieces], np.uint64(_PIECE), np.uint64(_CONTINUATION))
    hashed = _row(_polynomial(characters.codes, pieces, piece_lengths), salt, rows - SEP) + SEP
    return _matrix([(characters.texts[pieces], hashed)], len(texts), max_pieces)


def _polynomial(codes: Codes, starts: Rows, lengths: Rows) -> Codes:
    """Return the polynomial hash of each run: sum of (code + 1) * base^(position in the run), modulo 2^64."""
    if not len(starts):
        return np.empty(0, dtype=np.uint64)
    powers = np.cumprod(np.full(int(lengths.max()), _BASE, dtype=np.uint64))
    within = np.arange(len(codes)) - np.repeat(starts, lengths)
    return np.add.reduceat((codes + np.uint64(1)) * powers[within], starts)


def _window(codes: Codes, size: int) -> Codes:
    """Return the polynomial hash of every window of ``size`` codes: ``[codes - size + 1]``, empty for a short input."""
    last = max(len(codes) - size + 1, 0)
    powers = np.cumprod(np.full(size, _BASE, dtype=np.uint64))
    total = np.zeros(last, dtype=np.uint64)
    for offset in range(size):
        total += (codes[offset : offset + last] + np.uint64(1)) * powers[offset]
    return total


def _row(values: Codes, salt: Codes | int, rows: int) -> Rows:
    """Mix the values (finalizer of splitmix64) and scale them to 1 ... rows - 1."""
    mixed = values + np.asarray(salt, dtype=np.uint64) * np.uint64(_SALT)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    scaled: Codes = ((mixed >> np.uint64(32)) * np.uint64(rows - 1)) >> np.uint64(32)
    hashed: Rows = scaled.astype(np.int64) + 1
    return hashed


def _matrix(features: Sequence[tuple[Rows, Rows]], texts: int, limit: int) -> Matrix:
    """Arrange lists of (text, row), each sorted by text, as one padded matrix; the first list comes first."""
    counts = [np.bincount(owner, minlength=texts) for owner, _ in features]
    width = min(limit, int(np.sum(counts, axis=0).max(initial=1)) or 1)
    matrix = np.zeros((texts, width), dtype=np.int32)
    before = np.zeros(texts, dtype=np.int64)
    for (owner, rows), count in zip(features, counts, strict=True):
        position = np.arange(len(owner)) + (before - np.cumsum(count) + count)[owner]
        fits = position < width
        matrix[owner[fits], position[fits]] = rows[fits]
        before += count
    return matrix


def _each_once(texts: Sequence[str], hashed: Callable[[Sequence[str]], Matrix]) -> Matrix:
    """Hash ``texts`` in chunks; texts that recur, as queries and histories do, are hashed once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    matrix = _stack([hashed(chunk) for chunk in _chunks(distinct)], len(distinct))
    if len(distinct) == len(texts):
        return matrix
    return matrix[np.fromiter((places[text] for text in texts), dtype=np.int64, count=len(texts))]


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    edges = [*range(0, len(texts), _CHUNK), len(texts)]
    return (texts[start:stop] for start, stop in pairwise(edges))


def _stack(parts: Sequence[Matrix], texts: int) -> Matrix:
    matrix = np.zeros((texts, max((part.shape[1] for part in parts), default=1)), dtype=np.int32)
    start = 0
    for part in parts:
        matrix[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return matrix
