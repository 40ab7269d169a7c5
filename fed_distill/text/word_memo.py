"""Remember the tokens of words, so that a bag of tokens is looked up instead of tokenized.

BERT's tokenizer (Devlin et al. 2019) splits a text at white space and punctuation, and each word on its own into
pieces. Hence a text's tokens are those of its words, and most words of a catalogue occur again and again. What a word
is differs between versions of Unicode, so that only printable ASCII is split here; the rest is the tokenizer's.
"""

import json
import re
from collections.abc import Callable

_WORDS = re.compile(r"[0-9A-Za-z]+|[^0-9A-Za-z ]")
_MOST = 1 << 17
"""Words that are remembered; they are forgotten together when there are more."""


class WordMemo:
    """Tokens of words. encode: the tokenizer, which returns a word's tokens. lowercase: whether it ignores case."""

    def __init__(self, encode: Callable[[str], list[int]], lowercase: bool) -> None:
        self._encode, self._lowercase = encode, lowercase
        self._known: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int] | None:
        """Return the tokens of ``text``, untruncated; None for one that the tokenizer must read as a whole.

        Of control characters, some separate words and others do not; a bracket may begin a special token.
        """
        if not text.isascii() or not text.isprintable() or "[" in text:
            return None
        known = self._known
        found: list[int] = []
        for word in _WORDS.findall(text.lower() if self._lowercase else text):
            tokens = known.get(word)
            if tokens is None:
                if len(known) >= _MOST:
                    known.clear()
                tokens = known[word] = self._encode(word)
            found += tokens
        return found


def memo_for(description: str, encode: Callable[[str], list[int]]) -> WordMemo | None:
    """Return a memo for a tokenizer, or None unless it is BERT's.

    :param description: text of its ``tokenizer.json``
    :param encode: returns the tokens of a word, without special tokens
    """
    content = json.loads(description)
    kinds = tuple((content.get(part) or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model"))
    added = [one["content"] for one in content.get("added_tokens") or ()]
    if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece") or any(one[:1] != "[" for one in added):
        return None
    return WordMemo(encode, content["normalizer"]["lowercase"])
