"""Words of a text are where its encoding separates them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.text.hashing import bag_rows
from fed_distill.text.tokens import HashedTokens, PretrainedTokens, TokenWord
from fed_distill.text.words import gap_spans, word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("usb-c  hub, 7in1!", ["usb", "c", "hub", "7in1"]),
        ("Kühlschrank A+++ weiß", ["Kühlschrank", "A", "weiß"]),
        ("ku\u0308hl ét", ["ku\u0308hl", "ét"]),  # marks belong to the letter before them
        ("适用苹果15手机壳 硅胶", ["适用苹果", "15", "手机壳", "硅胶"]),
        ("½ ☕café ﬁlter", ["½", "☕", "café", "ﬁlter"]),
        ("", []),
        ("?! -", []),
    ],
)
def test_words_by_hand(text, words):
    assert [text[start:stop] for start, stop in word_spans(text)] == words


@given(st.text(max_size=40))
def test_spans_are_in_order_and_apart(text):
    spans = word_spans(text)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(edges) and all(start < stop for start, stop in spans)


@given(st.lists(st.text("abé7手机☕ü", min_size=1, max_size=6), max_size=6))
def test_the_features_of_a_text_are_those_of_its_words(words):
    text = " ".join(words)
    of_words = bag_rows([text[start:stop] for start, stop in word_spans(text)], 4096)
    whole = bag_rows([text], 4096)
    assert sorted(of_words[of_words > 0].tolist()) == sorted(whole[whole > 0].tolist())


@given(st.text(max_size=20))
def test_gaps_separate_what_split_separates(text):
    assert [text[start:stop] for start, stop in gap_spans(text)] == text.split()


@given(st.text("abcdefg7 手机", max_size=30), st.one_of(st.none(), st.text("abcdefg7 手机", max_size=30)))
def test_each_hashed_piece_has_the_word_that_it_is_a_piece_of(text, pair):
    tokens = HashedTokens(4096, 16)
    encoded = tokens.encode([text], None if pair is None else [pair])
    owners = tokens.words(text, pair)
    assert len(owners) == encoded["input_ids"].shape[1]
    ids = np.asarray(encoded["input_ids"])[0]
    assert [owner is None for owner in owners] == [token in (1, 2) for token in ids.tolist()]
    if pair is not None:
        for owner, segment in zip(owners, encoded["segments"][0].tolist(), strict=True):
            assert owner is None or owner.text == segment - 1
    for number, whole in enumerate((text, pair or "")):
        for owner in dict.fromkeys(owner for owner in owners if owner is not None and owner.text == number):
            at = [place for place, one in enumerate(owners) if one == owner]
            pieces = tokens.encode([whole[owner.start : owner.stop]], None)["input_ids"]
            np.testing.assert_array_equal(ids[at], np.asarray(pieces)[0, 1:-1][: len(at)])


def test_tokens_of_a_tokenizer_have_its_words(wordpiece_teacher, task):
    tokens = wordpiece_teacher(task).tokens
    assert isinstance(tokens, PretrainedTokens)
    owners = tokens.words("red phone", "blue-shoe")
    assert len(owners) == tokens.encode(["red phone"], ["blue-shoe"])["input_ids"].shape[1]
    first = list(dict.fromkeys(owner for owner in owners if owner))
    assert first == [
        TokenWord(0, 0, 3), TokenWord(0, 4, 9), TokenWord(1, 0, 4), TokenWord(1, 4, 5), TokenWord(1, 5, 9)
    ]  # fmt: skip
    assert owners[0] is None and owners[-1] is None
    assert None not in tokens.bag_words("red phone")
    assert len(tokens.bag_words("red phone")) == tokens.bags(["red phone"]).shape[1]
