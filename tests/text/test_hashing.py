"""The vectorized hashing against a slow twin that goes character by character in Python integers."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.text import hashing
from fed_distill.text.hashing import bag_rows, normalize, piece_rows, text_rows

SIXTY_FOUR = 1 << 64
BASE = 0x9E3779B97F4A7C15
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=30), st.text(alphabet="abZ19 -_/ßÉéİﬁ你好世界カナ🙂👍\ufe0f\u200d\u0301\n½", max_size=40)
    ),
    max_size=6,
)


def kind(character):
    code = ord(character)
    if 0xFE00 <= code < 0xFE10:
        return None
    category = unicodedata.category(character)
    if category == "So":
        return "ideograph"
    if category[0] in "LM":
        kana = 0x3040 <= code < 0x3100 or 0x31F0 <= code < 0x3200
        han = 0x3400 <= code < 0x4DC0 or 0x4E00 <= code < 0xA000 or 0xF900 <= code < 0xFB00 or 0x20000 <= code < 0x32000
        return "ideograph" if kana or han else "letter"
    return "digit" if category[0] == "N" else None


def runs(text, same):
    """Longest runs of characters that belong together."""
    result, last = [], None
    for character in normalize(text):
        this = kind(character)
        if this is None:
            last = None
            continue
        if last is not None and same(last, this):
            result[-1].append(character)
        else:
            result.append([character])
        last = this
    return result


def row(codes, salt, rows):
    value = sum((code + 1) * pow(BASE, position + 1, SIXTY_FOUR) for position, code in enumerate(codes))
    return mixed(value, salt, rows)


def mixed(value, salt, rows):
    value = (value + salt * 0xD1342543DE82EF95) % SIXTY_FOUR
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % SIXTY_FOUR
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % SIXTY_FOUR
    value ^= value >> 31
    return 1 + (((value >> 32) * (rows - 1)) >> 32)


def slow_bag(text, rows, ngrams):
    words = runs(text, lambda one, other: (one == "ideograph") == (other == "ideograph"))
    ideographic = [word for word in words if kind(word[0]) == "ideograph"]
    features = [row(map(ord, word), 101, rows) for word in words]
    features += [mixed(ord(character), 102, rows) for word in ideographic for character in word]
    features += [row(map(ord, word[i : i + 2]), 103, rows) for word in ideographic for i in range(len(word) - 1)]
    for size in ngrams:
        for word in words:
            marked = [0x110000, *map(ord, word), 0x110001]
            features += [row(marked[i : i + size], size, rows) for i in range(len(marked) - size + 1)]
    return features


def slow_pieces(text, rows):
    pieces = []
    for word in runs(text, lambda one, other: one == other != "ideograph"):
        step = len(word) if len(word) <= 6 else 4
        for start in range(0, len(word), step):
            pieces.append(row(map(ord, word[start : start + step]), 105 if start else 104, rows - 2) + 2)
    return pieces


def padded(lists, limit):
    cut = [entries[:limit] for entries in lists]
    matrix = np.zeros((len(cut), max([1, *map(len, cut)])), dtype=np.int32)
    for index, entries in enumerate(cut):
        matrix[index, : len(entries)] = entries
    return matrix


@settings(deadline=None)
@given(
    TEXTS, st.sampled_from([(3, 4), (2,), (), (3, 5)]), st.sampled_from([16, 1000, 2**20]), st.sampled_from([5, 512])
)
def test_bag_equals_the_slow_twin(texts, ngrams, rows, limit):
    expected = padded([slow_bag(text, rows, ngrams) for text in texts], limit)
    np.testing.assert_array_equal(bag_rows(texts, rows, ngrams, limit), expected)


@settings(deadline=None)
@given(TEXTS, st.sampled_from([16, 2**20]))
def test_whole_texts_equal_the_slow_twin(texts, rows):
    kept = [[character for character in normalize(text) if kind(character)] for text in texts]
    expected = [[row(map(ord, characters), 106, rows) if characters else 0] for characters in kept]
    np.testing.assert_array_equal(text_rows(texts, rows), np.array(expected, dtype=np.int32).reshape(-1, 1))


@settings(deadline=None)
@given(TEXTS, st.sampled_from([16, 8192]), st.sampled_from([3, 64]))
def test_pieces_equal_the_slow_twin(texts, rows, limit):
    expected = padded([slow_pieces(text, rows) for text in texts], limit)
    np.testing.assert_array_equal(piece_rows(texts, rows, limit), expected)


@settings(deadline=None)
@given(TEXTS)
def test_rows_leave_padding_and_reserved_ids_alone(texts):
    bag, pieces = bag_rows(texts, 16), piece_rows(texts, 16, 64)
    assert bag.min(initial=0) >= 0 and bag.max(initial=0) < 16
    assert not np.isin(pieces, [1, 2]).any() and pieces.max(initial=0) < 16


def test_rows_are_the_same_in_every_process_and_release():
    """Stored students depend on these numbers; they were computed by the slow twin."""
    assert bag_rows(["咖啡"], 32_768).tolist() == [[5015, 7421, 20023, 5503, 4888, 216, 13071]]
    assert piece_rows(["Espressomaschine 1,5l"], 8192, 64).tolist() == [[722, 572, 4825, 1672, 2820, 3735, 1300]]


@pytest.mark.parametrize(
    ("one", "other"),
    [("STRASSE", "straße"), ("ＡＢＣ１２", "abc12"), ("Caf\u00e9", "cafe\u0301"), ("a-b", "a, b"), ("❤️", "❤")],
)
def test_spellings_of_one_thing_share_all_features(one, other):
    np.testing.assert_array_equal(bag_rows([one], 32_768), bag_rows([other], 32_768))


def test_word_ends_tell_a_word_from_a_part_of_one():
    whole, part = set(bag_rows(["phone"], 2**20)[0]), set(bag_rows(["phones"], 2**20)[0])
    assert whole & part and whole - part


def test_ideographs_share_features_without_spaces_between_words():
    query, title = set(bag_rows(["手机"], 2**20)[0]), set(bag_rows(["苹果手机壳"], 2**20)[0])
    assert len(query & title) == 3  # both characters and their bigram


def test_large_batches_are_hashed_like_small_ones():
    texts = [f"item {number} x{number % 7}" for number in range(4100)]
    together = bag_rows(texts, 5000)
    for number in (0, 4095, 4096, 4099):
        alone = bag_rows([texts[number]], 5000)[0]
        np.testing.assert_array_equal(together[number, : len(alone)], alone)
        assert not together[number, len(alone) :].any()


def test_no_texts_and_texts_without_words_are_all_padding():
    assert bag_rows([], 100).shape == (0, 1)
    assert bag_rows(["", " ,;-", "\ud800"], 100).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("hashed", [lambda texts: bag_rows(texts, 500), lambda texts: piece_rows(texts, 500, 16)])
def test_texts_that_recur_are_hashed_once_and_have_the_rows_of_each_alone(hashed, monkeypatch):
    texts = ["red shoe", "blue", "red shoe", "", "blue", "手机 shoe", ""]
    together, widest = hashed(texts), max(hashed([text]).shape[1] for text in texts)
    assert together.shape == (len(texts), widest)
    for row, text in zip(together, texts, strict=True):
        alone = hashed([text])[0]
        assert row[: len(alone)].tolist() == alone.tolist() and not row[len(alone) :].any()
    seen = []
    monkeypatch.setattr(hashing, "_chunks", lambda given: seen.extend(given) or [given])
    hashed(texts)
    assert seen == ["red shoe", "blue", "", "手机 shoe"]
