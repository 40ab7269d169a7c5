"""Pruned vocabularies against the tokenizer that they come from."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fed_distill.errors import ConfigError
from fed_distill.text.wordpiece import TokenSet, most_frequent, pruned, token_counts

LETTERS = ["a", "b", "c", "##a", "##b", "##c"]
WHOLE = ["[PAD]", "unused", "[UNK]", "[CLS]", "[SEP]", "ab", "##bc", "abc", *LETTERS, "cab", "##ab"]


def tokenizer(tokens=WHOLE, processor="template"):
    vocabulary = {token: place for place, token in enumerate(tokens)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    cls, sep = ("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])
    if processor == "template":
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
        )
    if processor == "bert":
        made.post_processor = processors.BertProcessing(sep, cls)
    made.add_special_tokens([token for token in tokens if token.startswith("[")])
    return made.to_str()


SPELLED = [*WHOLE, *(f"{prefix}{letter}" for letter in "unsed" for prefix in ("", "##"))]
DESCRIPTION = tokenizer(SPELLED)


def pieces(description, text, **options):
    return Tokenizer.from_str(description).encode(text, **options).tokens


def test_tokens_are_counted_without_special_ones():
    counts = token_counts(DESCRIPTION, ["abc ab", "abcab", ""])
    found = {SPELLED[place]: count for place, count in enumerate(counts.tolist()) if count}
    assert found == {"abc": 2, "ab": 1, "##ab": 1}
    assert len(counts) == len(SPELLED)


def test_most_frequent_tokens_are_sorted_ids_and_never_unused_ones():
    counts = np.array([0, 3, 5, 3, 0, 3])
    assert most_frequent(counts, 2).tolist() == [1, 2]
    assert most_frequent(counts, 100).tolist() == most_frequent(counts, None).tolist() == [1, 2, 3, 5]
    assert most_frequent(counts, 0).tolist() == []


@pytest.mark.parametrize("processor", ["template", "bert", None])
def test_special_tokens_keep_their_roles_with_new_ids(processor):
    whole = tokenizer(SPELLED, processor)
    smaller, former = pruned(whole, [SPELLED.index("cab")])
    kept = [SPELLED[place] for place in former]
    assert "unused" not in kept and "abc" not in kept and {"cab", "[PAD]", "[UNK]", *LETTERS} <= set(kept)
    for text in ("cab", "c a b", "x cab"):
        before, after = Tokenizer.from_str(whole).encode(text, "cab"), Tokenizer.from_str(smaller).encode(text, "cab")
        assert after.tokens == before.tokens and after.type_ids == before.type_ids
        assert former[after.ids].tolist() == before.ids
        assert after.special_tokens_mask == before.special_tokens_mask


@given(st.lists(st.text("abc", min_size=1, max_size=8), max_size=4), st.sets(st.sampled_from(range(len(WHOLE)))))
def test_words_of_kept_tokens_are_as_before_and_no_word_becomes_unknown(words, tokens):
    smaller, former = pruned(DESCRIPTION, tokens)
    kept = {SPELLED[place] for place in former}
    for word in words:
        before, after = (pieces(one, word, add_special_tokens=False) for one in (DESCRIPTION, smaller))
        assert "".join(piece.removeprefix("##") for piece in after) == word
        if set(before) <= kept:
            assert after == before


def test_unknown_words_remain_unknown():
    smaller, _ = pruned(DESCRIPTION, [])
    assert pieces(smaller, "xyz abx", add_special_tokens=False) == ["[UNK]", "[UNK]"]


def test_truncation_and_padding_of_the_teacher_are_not_taken_over():
    limited = Tokenizer.from_str(DESCRIPTION)
    limited.enable_truncation(4)
    limited.enable_padding()
    smaller = json.loads(pruned(limited.to_str(), [])[0])
    assert smaller["truncation"] is None and smaller["padding"] is None
    assert token_counts(limited.to_str(), ["a b c a b c"]).sum() == 6


def test_vocabulary_that_cannot_spell_its_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"token 'unused' has the character 'u'.*vocabulary = ."):
        pruned(tokenizer(), [])


def test_other_models_than_wordpiece_are_refused():
    with pytest.raises(ConfigError, match="is a WordLevel: set vocabulary"):
        pruned(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str(), [])


def test_a_token_set_has_what_the_texts_use():
    texts = ["abc ab", "abc"]
    everything = TokenSet.of(DESCRIPTION, "all", texts)
    assert everything.tokenizer == DESCRIPTION and everything.former.tolist() == [*range(len(SPELLED))]
    used = TokenSet.of(DESCRIPTION, "catalogue", texts)
    names = [SPELLED[place] for place in used.former]
    assert {"abc", "ab"} <= set(names) and not {"##bc", "cab", "##ab", "unused"} & set(names)
    counted = {name: count for name, count in zip(names, used.counts.tolist(), strict=True) if count}
    assert counted == {"abc": 2, "ab": 1}
    first = TokenSet.of(DESCRIPTION, 1, texts)
    names = [SPELLED[place] for place in first.former]
    counted = {name: count for name, count in zip(names, first.counts.tolist(), strict=True) if count}
    assert counted == {"abc": 2, "a": 1, "##b": 1}, "the counts are of the new tokens"


def test_pruning_requires_texts():
    assert TokenSet.of(DESCRIPTION, "all", None).counts is None
    with pytest.raises(ConfigError, match="vocabulary = 5 requires the server's texts"):
        TokenSet.of(DESCRIPTION, 5, None)
