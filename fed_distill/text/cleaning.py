"""Clean texts: collapse white space, replace what is not a character, and mask personal data.

Personal data are e-mail addresses, phone numbers and payment card numbers (ISO/IEC 7812: issuer prefix, length and Luhn
check digit); each is replaced by a word in brackets. Product titles are full of long numbers, so the patterns ask for
the marks of a phone or a card, and leave model numbers, EANs and ISBNs alone.
"""

import re
from collections import Counter
from collections.abc import Callable

_DIGITS = r"(?:[ ./-]?\(?(?:\d{5}|\d{1,4}(?!\d))\)?)"
"""A group of digits. A run of digits is groups of five and one of what remains: since it is split in only one way, the
time to search a text is proportional to its length."""
_ANNOUNCED = (
    *("tel:", "phone:", "mobile:", "mobil:", "fax:", "whatsapp:", "telefon:", "telefoon:", "call"),
    *(" tel ", r" tel\.", " telefon ", " telefoon ", " bel ", " ara ", " llame al ", " chiama "),
    *("电话", "手机", "电话[:：]", "手机[:：]", "致电"),
)
"""What announces a phone number, as patterns of a fixed length."""


PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("email", re.compile(r"(?<![\w.%+-])[\w.%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(?![\w-])")),
    (
        "card",
        re.compile(
            r"(?<![\w.-])(?:\d{15,16}|\d{19}"
            r"|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-])"
        ),
    ),
    # With the country's code, after a word that announces it, or in the North American or Chinese grouping.
    ("phone", re.compile(r"(?<![\w+])\+(?:\d{3}|\d{1,2}(?!\d))\)?" + _DIGITS + r"{1,7}(?!\w)")),
    (
        "phone",
        re.compile(
            "(?:"
            + "|".join(f"(?<={words})" for words in _ANNOUNCED)
            + r")\s*\(?(?:\d{5}|\d{2,4}(?!\d))\)?"
            + _DIGITS
            + r"{1,6}(?!\w)",
            re.IGNORECASE,
        ),
    ),
    (
        "phone",
        re.compile(r"(?<![\w.-])(?:\([2-9]\d{2}\) ?[2-9]\d{2}-\d{4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4})(?![\w-])"),
    ),
    ("phone", re.compile(r"(?<![\w-])1[3-9]\d([ -])\d{4}\1\d{4}(?![\w-])")),
    # Dutch mobile, Turkish mobile, and French, in their usual grouping.
    (
        "phone",
        re.compile(r"(?<![\w.,+-])(?:06[ -]\d{8}|05\d{2}([ -])\d{3}\1\d{2}\1\d{2}|0[1-9](?:([ .])\d{2}){4})(?![\w-])"),
    ),
)
"""What is masked, in this order: kind and pattern. A card also needs an issuer's prefix and a check digit, and a phone
7 to 15 digits."""
PERHAPS = re.compile(r"@|(?:\d[ ./()-]{0,3}){7}")
"""Occurs in every text in which something is masked."""
ISSUERS = {
    14: re.compile(r"3(?:0[0-5]|[689])"),
    15: re.compile(r"3[47]"),
    16: re.compile(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|6(?:011|4[4-9]|5|2)|35(?:2[89]|[3-8])"),
    19: re.compile(r"4|62"),
}
"""Prefixes of issuers of cards, by the number of a card's digits."""


_SURROGATES = re.compile("[\ud800-\udfff]")


def collapse(text: str) -> str:
    """Replace each run of white space by one blank, and remove it at both ends.

    Half of a surrogate pair, which JSON can hold as ``\\ud800``, is no character and cannot be written to a file. It
    becomes U+FFFD, the replacement character.
    """
    collapsed = " ".join(text.split())
    try:
        collapsed.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", collapsed)
    return collapsed


def mask(text: str, counts: Counter[str] | None = None) -> str:
    """Replace personal data in ``text`` by ``[email]``, ``[card]`` or ``[phone]``; add what was found to ``counts``."""
    if not PERHAPS.search(text):
        return text
    tally: Counter[str] = Counter() if counts is None else counts
    for kind, pattern in PATTERNS:
        text = pattern.sub(_replacer(kind, tally), text)
    return text


def _replacer(kind: str, tally: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        digits = re.sub(r"\D", "", match[0])
        if kind == "card" and not _is_card(digits):
            return match[0]
        if kind == "phone" and not 7 <= len(digits) <= 15:
            return match[0]
        tally[kind] += 1
        blank = " " if match[0][0].isspace() else ""
        return f"{blank}[{kind}]"

    return replace


def _is_card(digits: str) -> bool:
    issuer = ISSUERS.get(len(digits))
    return issuer is not None and issuer.match(digits) is not None and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last of ``digits`` is the Luhn check digit (ISO/IEC 7812-1, annex B) of the others."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0
