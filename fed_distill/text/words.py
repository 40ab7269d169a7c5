"""The words of a text as spans of its characters, as the hashed encodings separate them (``text.hashing``)."""

import unicodedata
from itertools import pairwise

from fed_distill.text.hashing import IDEOGRAPH, SEPARATOR, code_kinds, normalize

Span = tuple[int, int]
"""First character, and the one after the last."""


def word_spans(text: str) -> list[Span]:
    """Return the spans of the words of ``text``: runs of letters and digits, or of ideographs.

    Characters are classified after normalization, in which one character can become several. Words that share a
    character, such as the 1 and the 2 of "½", are one span.
    """
    starts = [at for at, sign in enumerate(text) if not at or unicodedata.category(sign)[0] != "M"]
    spans: list[Span] = []
    last = SEPARATOR
    for start, stop in pairwise([*starts, len(text)]):
        for sign in normalize(text[start:stop]):
            kind = int(code_kinds()[ord(sign)])
            if kind != SEPARATOR:
                goes_on = last != SEPARATOR and (last == IDEOGRAPH) == (kind == IDEOGRAPH)
                if spans and (goes_on or spans[-1][1] > start):
                    spans[-1] = spans[-1][0], stop
                else:
                    spans.append((start, stop))
            last = kind
    return spans


def gap_spans(text: str) -> list[Span]:
    """Return the spans of what white space separates in ``text``."""
    edges = [at for at, sign in enumerate(f" {text} ") if sign.isspace()]
    return [(before, after - 1) for before, after in pairwise(edges) if after - before > 1]


def one_line(text: str) -> str:
    """Return ``text`` with Python's escapes for line ends and whatever else is not printed, such as a terminal's
    commands: it can stand in a comment or a message."""
    return "".join(
        sign.encode("unicode_escape").decode()
        if (kind := unicodedata.category(sign))[0] in "CZ" and kind != "Zs"
        else sign
        for sign in text
    )
