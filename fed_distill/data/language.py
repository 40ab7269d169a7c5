"""Guess whether texts are English, which the teacher ``minilm`` was trained on.

Running text has function words, which hardly any other language shares when they are chosen for it. Queries and titles
have few of them in any language, so that nothing is concluded where they are missing.
"""

import re
from collections.abc import Sequence

_COMPARED = 20_000
"""Texts that are read."""
_FUNCTION_WORDS = frozenset(
    ("the", "and", "to", "it", "for", "this", "that", "with", "not", "my", "but", "you", "are", "have", "they")
)
"""Frequent function words of English that are no frequent words of Spanish, French, Italian, Portuguese, German or
Dutch; in running English they are about a fifth of all words."""
_ENGLISH_SHARE = 0.1
"""Share of words from which on texts are English."""


def ascii_share(texts: Sequence[str]) -> float:
    """Return the share of the texts' letters that are ASCII; 0 without letters."""
    letters = [letter for text in texts[:_COMPARED] for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) / max(1, len(letters))


def surely_english(texts: Sequence[str]) -> bool:
    """Return whether function words show that texts are English; False is no proof of another language."""
    words = [word for text in texts[:_COMPARED] for word in re.findall(r"[^\W\d_]+", text.lower())]
    return sum(word in _FUNCTION_WORDS for word in words) > _ENGLISH_SHARE * len(words)
