"""What JavaScript needs to clean and normalize texts as this package does: tables of Unicode, and the patterns of
personal data.

Engines of JavaScript differ in their version of Unicode and have no case folding, so that both are written as tables of
the version of this Python (``unicodedata``). Patterns are translated: ``\\w`` and ``\\d`` have ASCII only there.
"""

import re
import unicodedata
from itertools import groupby
from typing import Any

from fed_distill.text.cleaning import ISSUERS, PATTERNS, PERHAPS
from fed_distill.text.hashing import code_kinds

UNASSIGNED = 4
"""Kind of a code point that this version of Unicode does not have; the others are those of ``hashing.code_kinds``."""

_SETS = {"w": r"\p{L}\p{N}_", "d": r"\p{Nd}", "s": " "}
"""Python's classes in brackets. Of white space, a text has blanks only when it is masked."""
_TOKENS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?(?:<?[=!]|:)|[^\\\[]", re.DOTALL)
_CASES = "ſKıİ"
"""Characters outside of ASCII that Python matches with an ASCII letter where case is ignored."""


def unicode_tables() -> dict[str, Any]:
    """Return ``version``, ``kinds`` and ``casefold``, JSON-ready.

    kinds: runs of code points of one kind from 0 on: count, kind, count, kind, ... casefold: by character, what case
    folding replaces it by; characters that are not in it stay.
    """
    kinds = code_kinds().tolist()
    for code in range(len(kinds)):
        if unicodedata.category(chr(code)) == "Cn":
            kinds[code] = UNASSIGNED
    runs = [number for kind, run in groupby(kinds) for number in (len(list(run)), kind)]
    characters = map(chr, range(len(kinds)))
    folded = {one: other for one in characters if (other := one.casefold()) != one}
    return {"version": unicodedata.unidata_version, "kinds": runs, "casefold": folded}


def mask_patterns() -> dict[str, Any]:
    """Return ``perhaps``, ``patterns`` (kind and pattern) and ``issuers`` of ``cleaning``, for ``RegExp`` with its flag
    ``u``, JSON-ready."""
    return {
        "perhaps": javascript_pattern(PERHAPS),
        "patterns": [[kind, javascript_pattern(pattern)] for kind, pattern in PATTERNS],
        "issuers": {str(length): javascript_pattern(pattern) for length, pattern in ISSUERS.items()},
    }


def javascript_pattern(pattern: re.Pattern[str]) -> str:
    """Return a pattern for ``RegExp`` with its flag ``u`` that matches what ``pattern`` does in a collapsed text.

    :raises ValueError: the pattern has flags or escapes that are not translated
    """
    if pattern.flags & ~(re.UNICODE | re.IGNORECASE):
        raise ValueError(f"flags of {pattern.pattern!r} are not translated to JavaScript: only IGNORECASE is")
    ignores_case = bool(pattern.flags & re.IGNORECASE)
    return "".join(_translated(token, ignores_case) for token in _TOKENS.findall(pattern.pattern))


def _translated(token: str, ignores_case: bool) -> str:
    if token.startswith("["):
        if ignores_case and re.search("[A-Za-z]", re.sub(r"\\.", "", token)):
            raise ValueError(f"letters in {token!r} are not translated to JavaScript where case is ignored")
        return re.sub(r"\\(.)", lambda match: _escape(match[1], inside=True), token)
    if token.startswith("\\"):
        return _escape(token[1], inside=False)
    if ignores_case and len(token) == 1 and token.isascii() and token.isalpha():
        same = [one for one in (token.lower(), token.upper(), *_CASES) if re.fullmatch(token, one, re.IGNORECASE)]
        return f"[{''.join(same)}]"
    return token


def _escape(character: str, inside: bool) -> str:
    if character in _SETS:
        return _SETS[character] if inside else f"[{_SETS[character]}]"
    if character in "123456789" and not inside:
        return f"\\{character}"
    if character in r"\^$.*+?()[]{}|/" or (inside and character == "-"):
        return f"\\{character}"
    raise ValueError(f"\\{character} is not translated to JavaScript")
