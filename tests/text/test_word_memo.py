"""Bags of tokens from remembered words equal those of the tokenizers library."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from fed_distill.text import word_memo
from fed_distill.text.tokens import PretrainedTokens

PIECES = ["[PAD]", "[UNK]", "[SEP]", *"abcxyz019-.'", "red", "phone", "##s", "##a", "##9", "caf", "##é", "é", "手"]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["red", "Phones", "a", "[SEP]", "x" * 101, "a-b", "it's", "9.0", "手", "é", "caf\u00e9", "\x00"]
        ),
        st.text(st.characters(max_codepoint=0x2FF), max_size=6),
    ),
    max_size=8,
).map(" ".join)


def description(**parts):
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=parts.get("lowercase", True))
    tokenizer.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.BertPreTokenizer())
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[SEP]"])
    tokenizer.add_tokens(parts.get("added", []))
    return tokenizer.to_str()


def by_library(text, texts, max_length):
    """Tokens by the library alone, padded with 0, which is the padding token's id here."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.enable_truncation(max_length)
    bags = [tokenizer.encode(one, add_special_tokens=False).ids for one in texts]
    ids = np.zeros((len(bags), max(map(len, bags), default=0) or 1), dtype=np.int32)
    for row, bag in enumerate(bags):
        ids[row, : len(bag)] = bag
    return ids


@pytest.mark.parametrize("lowercase", [True, False])
@given(texts=st.lists(TEXTS, max_size=6), longest=st.sampled_from([3, 512]))
def test_remembered_words_give_the_tokens_of_the_library(lowercase, texts, longest):
    text = description(lowercase=lowercase)
    tokens = PretrainedTokens(text, 0, longest)
    for _ in range(2):  # words are read, then remembered
        np.testing.assert_array_equal(tokens.bags(texts), by_library(text, texts, longest))


def test_a_word_is_tokenized_once_until_too_many_are_known(monkeypatch):
    monkeypatch.setattr(word_memo, "_MOST", 2)
    asked = []

    def encode(word):
        asked.append(word)
        return [len(word)]

    memo = word_memo.memo_for(description(), encode)
    assert memo is not None
    assert memo.tokens("Red red-phone") == [3, 3, 1, 5]
    assert asked == ["red", "-", "phone"]
    assert memo.tokens("red") == [3] and asked[-1] == "red"  # forgotten with the others


@pytest.mark.parametrize("text", ["red [SEP] phone", "café", "red\tphone", "red\x01phone"])
def test_texts_that_must_be_read_whole_are_left_to_the_tokenizer(text):
    memo = word_memo.memo_for(description(), lambda word: [1])
    assert memo is not None and memo.tokens(text) is None


def test_other_tokenizers_have_no_memo():
    no_normalizer = json.loads(description())
    no_normalizer["normalizer"] = None
    for text in (
        description(pre_tokenizer=pre_tokenizers.Whitespace()),
        description(added=["red phone"]),
        json.dumps(no_normalizer),
    ):
        assert word_memo.memo_for(text, lambda word: [1]) is None
        np.testing.assert_array_equal(
            PretrainedTokens(text, 0, 512).bags(["red phone"]), by_library(text, ["red phone"], 512)
        )
