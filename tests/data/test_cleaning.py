import re
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.data.cleaning import REASONS, clean, clean_text
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.data.label_table import write_texts
from fed_distill.errors import DataError
from fed_distill.text import cleaning
from fed_distill.text.cleaning import luhn, mask


def test_every_row_is_kept_or_dropped_for_its_first_reason() -> None:
    rows: list[tuple[str, str | None, str, int]] = [
        ("a", "red  phone\n", "case", 0),
        ("", "red phone", "case", 0),
        ("a", None, "case", 0),
        ("a", "   ", "case", 0),
        ("a", "blue phone", "", 0),
        ("a", "x" * 31, "case", 0),
        ("a", "blue phone", "case", UNLABELED),
        ("a", "red phone", "case", 1),
        ("b", "red phone", "case", 0),
    ]
    merchants, texts, pairs, labels = zip(*rows, strict=True)
    cleaned = clean(texts, pairs, labels, merchants, max_characters=30)
    assert cleaned.rows == (0, 8)
    assert cleaned.texts == ("red phone", "red phone")
    assert cleaned.pairs == ("case", "case")
    assert cleaned.account["dropped"] == {
        "no merchant": 1,
        "empty": 3,
        "too long": 1,
        "unknown label": 1,
        "duplicate": 1,
    }
    assert tuple(cleaned.account["dropped"]) == REASONS
    assert cleaned.account["rows_read"] == 9
    assert cleaned.account["rows_kept"] == 2


def test_a_merchant_without_a_known_label_is_named(caplog: pytest.LogCaptureFixture) -> None:
    cleaned = clean(["x", "y", "z"], None, [0, UNLABELED, UNLABELED], ["shop", "shop", "mute"], max_characters=10)
    assert cleaned.account["unlabeled_merchants"] == ["mute"]
    assert "mute" in caplog.text


def test_rows_need_no_merchant_where_a_partitioner_makes_them() -> None:
    assert clean(["x", "y"], None, [0, 1], None, max_characters=10).account["rows_kept"] == 2


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ask jo.doe+shop@mail.example.co.uk now", "ask [email] now"),
        ("卖家 wang@example.cn。", "卖家 [email]。"),
        ("card 4111 1111 1111 1111", "card [card]"),
        ("card 4111-1111-1111-1111.", "card [card]."),
        ("card 5555555555554444", "card [card]"),
        ("amex 3782 822463 10005", "amex [card]"),
        ("ring +44 20 7946 0958", "ring [phone]"),
        ("ring +49 (0)30 901820 today", "ring [phone] today"),
        ("ring (212) 555-0123", "ring [phone]"),
        ("ring 212-555-0123", "ring [phone]"),
        ("手机: 138-0013-8000", "手机: [phone]"),
        ("电话13800138000", "电话[phone]"),
        ("tel: 030 901820", "tel: [phone]"),
        # the fewest digits that are taken for a number, a local one without its area, and E.164's most
        ("call 555-0123", "call [phone]"),
        ("graag bel 020-1234567", "graag bel [phone]"),
        ("of 06-12345678", "of [phone]"),
        ("onze telefoon 0201234567", "onze telefoon [phone]"),
        ("met tel. 0201234567", "met tel. [phone]"),
        ("0532 123 45 67", "[phone]"),
        ("0532-123-45-67", "[phone]"),
        ("01 23 45 67 89", "[phone]"),
        ("01.23.45.67.89", "[phone]"),
        ("ring +290 2 2471", "ring [phone]"),
        ("ring +881 234 567 890 123", "ring [phone]"),
        ("ring +31 (20) (123) (4567)", "ring [phone]"),
        ("ring (+1) 212 555 0123", "ring ([phone]"),
    ],
)
def test_personal_data_are_masked(text: str, masked: str) -> None:
    counts: Counter[str] = Counter()
    assert mask(text, counts) == masked
    assert counts.total() == 1


@pytest.mark.parametrize(
    "text",
    [
        "apple iphone 8 plus 64gb 5.5 12mp mq8n2b/a",
        "geleverd op 05-11-2024 en 05 11 2024, art. 0890-4567-12, isbn 0306406152, 0,5-10 mm 06-2024",
        "ean 4006381333931 stapler",  # GTIN-13 of a real pen, check digit 1
        "gtin 00012345600012",
        "isbn 978-3-16-148410-0",
        "serial 4111111111111112",  # a card's form, a wrong check digit
        "order 1234567812345670",  # right check digit, no issuer begins so
        "intel core i7 8700k 3.2 4.6 ghz 1151 v2 12 mb",
        "samsung ue55nu7100kxxu 55 3840 2160 100 hz",
        "resistor +5 1234",
        "part 0-306-40615-2 rev 13800138000",
        "nikon d3500 + 18 55 mm + 70 300 mm lens",
        "lens f/2.8@50mm",
        "handy nokia 3310 2017 16 mb",
        "call 55 0123",
        "ring +881 234 567 890 1234",
    ],
)
def test_model_numbers_and_product_codes_are_left_alone(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    "number", ["79927398713", "4111111111111111", "378282246310005", "5555555555554444", "6011111111111117"]
)
def test_luhn_accepts_published_test_numbers(number: str) -> None:
    assert luhn(number)


@given(st.text("0123456789", min_size=1, max_size=18))
def test_exactly_one_check_digit_fits(digits: str) -> None:
    assert sum(luhn(digits + check) for check in "0123456789") == 1


@pytest.mark.parametrize("start", ["+", "tel:"])
def test_digits_that_end_in_a_letter_are_searched_once(start: str) -> None:
    """No phone number ends there, so that a search that backtracks tries each way to group them: minutes."""
    text = f"{start}{'1' * 26}x" * 150_000
    assert mask(text) == text


@pytest.mark.parametrize("text", ["%" * 400_000 + "@", "a%" * 200_000 + "@b", "a@" + "b." * 200_000])
def test_what_is_nearly_an_address_is_searched_once(text: str) -> None:
    """From each character anew it would take minutes."""
    assert mask(text) == text


@pytest.mark.parametrize("text", ["%me@example.org", "x %25me@example.org", "a%me@example.org"])
def test_an_address_begins_with_its_first_character(text: str) -> None:
    assert mask(text) in ("[email]", "x [email]")


GROUP = st.tuples(st.sampled_from(["", " ", "-", ") ", ") ("]), st.integers(1, 9999).map(str)).map("".join)


@given(st.sampled_from(["", "+31", "tel:020", "jo@"]), st.lists(GROUP, min_size=1, max_size=4).map("".join))
def test_a_text_that_is_not_searched_has_nothing_to_mask(start: str, number: str) -> None:
    text = start + number
    with patch.object(cleaning, "PERHAPS", re.compile("")):
        searched = mask(text)
    assert mask(text) == searched


@given(st.text(max_size=60))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    assert mask(mask(text)) == mask(text)


def test_half_of_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    """What Unicode prescribes for it (chapter 3.9, conformance C10); the smiley is a whole pair in UTF-16."""
    cleaned = clean(["red \ud800 phone", "\udfff", "a \U0001f600"], None, None, None, 40)
    assert cleaned.texts == ("red \ufffd phone", "\ufffd", "a \U0001f600")
    assert clean_text("red \ud800 phone", "text", 40) == cleaned.texts[0], "as a text that is served"
    rows = np.arange(3)
    write_texts(tmp_path / "proxy.csv", Examples(cleaned.texts, None, rows, rows, ("",) * 3))
    assert (tmp_path / "proxy.csv").read_text(encoding="utf-8").splitlines() == ["text", *cleaned.texts]


def test_a_merchants_name_that_is_not_unicode_is_named_with_its_row() -> None:
    with pytest.raises(DataError, match=r"row 2: the merchant's name 'b\\ud800' has half of a surrogate pair"):
        clean(["red", "blue"], None, None, ["a", "b\ud800"], 40)
