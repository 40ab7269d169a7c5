"""Patterns for JavaScript say what they cannot say; ``tests/serving/test_web_student.py`` runs them."""

import re

import pytest

from fed_distill.text.javascript import UNASSIGNED, javascript_pattern, unicode_tables


def test_classes_have_all_scripts_and_letters_all_cases():
    assert javascript_pattern(re.compile(r"(?<![\w.-])\d{2}\s*")) == r"(?<![\p{L}\p{N}_.-])[\p{Nd}]{2}[ ]*"
    assert javascript_pattern(re.compile("(?:sik)", re.IGNORECASE)) == "(?:[sSſ][iIıİ][kKK])"


@pytest.mark.parametrize(
    "pattern",
    [re.compile("a", re.ASCII), re.compile(r"a\b"), re.compile("[a-z]", re.IGNORECASE), re.compile(r"\S")],
)
def test_what_is_not_translated_is_an_error(pattern):
    with pytest.raises(ValueError, match="not translated"):
        javascript_pattern(pattern)


def test_tables_have_every_code_point_and_full_case_folding():
    tables = unicode_tables()
    runs = tables["kinds"]
    assert sum(runs[::2]) == 0x110000
    kinds = [kind for count, kind in zip(runs[::2], runs[1::2], strict=True) for _ in range(count)]
    # Unicode character database: general categories Lu, Nd, So, Zs, Cn, and Han.
    assert [kinds[ord(one)] for one in ("A", "7", "☕", " ", "\uffff", "手")] == [1, 2, 3, 0, UNASSIGNED, 3]
    # CaseFolding.txt: statuses C and F.
    folded = {"A": "a", "ß": "ss", "ﬁ": "fi", "ς": "σ", "İ": "i̇", "Ꭰ": None}
    assert {one: tables["casefold"].get(one) for one in folded} == folded
