"""What JavaScript needs to split texts into WordPiece tokens as Hugging Face's ``tokenizers`` do.

``BertNormalizer`` and ``BertPreTokenizer`` treat each code point by itself, except for canonical decomposition, but by
tables of several versions of Unicode. The tables are therefore not written down, but found: each code point passes
through the tokenizer's own normalizer and pre-tokenizer. The vocabulary is searched from left to right for the longest
piece (Devlin et al. 2019; ``fed_distill.text.wordpiece``).
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from tokenizers import normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer

from fed_distill.errors import ModelError

SEPARATOR, LETTER, WORD, REMOVED, MARK = range(5)
"""Kinds of code points: between words; of a word; a word of its own; removed before the decomposition; and after it."""

_NOT_ASSIGNED = "\uffff"
"""What ``texts.js`` replaces code points by that this Python's version of Unicode does not have."""
_BLOCK = 4096
_COMBINING = ("\U0001d165", "\u302e")
"""Spacing marks of the combining classes 216 and 224, which are kept in words, and reordered with their neighbours."""


def wordpiece_tables(description: str) -> dict[str, Any]:
    """Return how ``web/wordpiece.js`` of ``fed_distill.serving`` splits a text, JSON-ready.

    ``docs/how-to/student.md`` has the algorithm.

    :param description: text of a ``tokenizer.json``
    :raises ModelError: it is not a WordPiece with BERT's normalizer and pre-tokenizer
    """
    whole: dict[str, Any] = json.loads(description)
    model, normalizer = whole["model"], whole["normalizer"] or {}
    parts = (model.get("type"), normalizer.get("type"), (whole["pre_tokenizer"] or {}).get("type"))
    if parts != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
        raise ModelError(
            "only WordPiece tokenizers with BertNormalizer and BertPreTokenizer run in JavaScript, and this student's "
            f"has {', '.join(map(str, parts))}: serve it by fed-distill serve"
        )
    if model["unk_token"] not in model["vocab"]:
        raise ModelError(f"the tokenizer's vocabulary lacks its unknown token {model['unk_token']!r}")
    for token in whole["added_tokens"]:
        if token["single_word"] or token["lstrip"] or token["rstrip"] or token["normalized"]:
            raise ModelError(
                f"the tokenizer's added token {token['content']!r} has options that JavaScript does not run "
                "(single_word, lstrip, rstrip or normalized): serve the student by fed-distill serve"
            )
    options = tuple(normalizer[name] for name in ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"))
    kinds, lowercase, apart = _characters(*options)
    strips = normalizer["lowercase"] if normalizer["strip_accents"] is None else normalizer["strip_accents"]
    return {
        "vocabulary": model["vocab"],
        "unknown": model["vocab"][model["unk_token"]],
        "prefix": model["continuing_subword_prefix"],
        "longest_word": model["max_input_chars_per_word"],
        "added": {token["content"]: token["id"] for token in whole["added_tokens"]},
        "kinds": kinds,
        "lowercase": lowercase,
        "decomposed": strips,
        "undecomposed": apart,
    }


@cache
def _characters(
    clean: bool, ideographs: bool, accents: bool | None, lowercase: bool
) -> tuple[list[int], dict[str, str], str]:
    """Return runs of kinds (count, kind, ...), what characters become in lower case, and those that the normalizer's
    version of Unicode neither decomposes nor reorders, although this Python's does."""
    whole = normalizers.BertNormalizer(clean, ideographs, accents, lowercase)
    cleaning = normalizers.BertNormalizer(clean, False, False, False)
    strips = lowercase if accents is None else accents
    known = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    kinds = bytearray([LETTER]) * 0x110000  # what is not assigned is of a word, as U+FFFF is
    smaller: dict[str, str] = {}
    apart = set()
    for character, cleaned, normalized, words in _passed([*known, _NOT_ASSIGNED], cleaning, whole):
        if cleaned == "":
            kind = REMOVED
        elif words == 2:
            kind = SEPARATOR
        elif words == 3:
            kind = WORD
        else:
            kind = MARK if normalized == "" else LETTER
        kinds[ord(character)] = kind
        left = normalized.strip(" ")
        decomposed = unicodedata.normalize("NFD", character) if strips else character
        if decomposed != character and left == character:
            apart.add(character)
        elif decomposed == character and kind in (LETTER, WORD) and left != character:
            smaller[character] = left
    if strips:
        kept = [one for one in known if unicodedata.combining(one) and kinds[ord(one)] == LETTER]
        apart.update(one for one in kept if not _reordered(whole, one))
    runs = [number for kind, run in groupby(kinds) for number in (len(list(run)), kind)]
    return runs, smaller, "".join(sorted(apart))


def _passed(characters: Sequence[str], cleaning: Normalizer, whole: Normalizer) -> Iterator[tuple[str, str, str, int]]:
    """Yield each character, what cleaning and normalization leave of it between two letters, and the number of words
    that the three make. Many characters pass at once, between words z."""
    splitting = pre_tokenizers.BertPreTokenizer()
    for start in range(0, len(characters), _BLOCK):
        block = characters[start : start + _BLOCK]
        text = " z ".join(f"a{one}b" for one in block)
        normalized = whole.normalize_str(text)
        counts = [1]
        for word, _ in splitting.pre_tokenize_str(normalized):
            if word == "z":
                counts.append(0)
            counts[-1] += word != "z"
        counts[0] -= 1
        parts = (cleaning.normalize_str(text).split(" z "), normalized.split(" z "))
        for one, cleaned, left, count in zip(block, *parts, counts, strict=True):
            yield one, cleaned[1:-1], left[1:-1], count


def _reordered(whole: Normalizer, mark: str) -> bool:
    """Whether the normalizer orders ``mark`` and other marks as Python's NFD does."""
    pairs = [pair for other in _COMBINING for pair in (f"a{mark}{other}", f"a{other}{mark}")]
    return all(whole.normalize_str(pair) == unicodedata.normalize("NFD", pair) for pair in pairs)
