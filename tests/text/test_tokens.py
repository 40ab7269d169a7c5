"""Token sequences: their shape, how pairs are cut, and equality with the tokenizers that they come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.errors import ModelError
from fed_distill.text.hashing import CLS, SEP, piece_rows
from fed_distill.text.tokens import HashedTokens, PretrainedTokens

WORDS = st.lists(st.sampled_from(["a", "bc", "7", "手"]), max_size=12).map(" ".join)


def pieces(text):
    return [piece for piece in piece_rows([text], 100, 1000)[0].tolist() if piece]


def slow(text, pair, max_length):
    """Cut the last piece of the longer text until both fit."""
    first, second = pieces(text), pieces(pair)
    while len(first) + len(second) > max_length - 3:
        (first if len(first) > len(second) else second).pop()
    ids = [CLS, *first, SEP, *second, SEP]
    return ids, [1] * (len(first) + 2) + [2] * (len(second) + 1)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.sampled_from([8, 9, 16]))
def test_hashed_pairs_equal_the_slow_twin(examples, max_length):
    texts, pairs = zip(*examples, strict=True)
    encoded = HashedTokens(100, max_length).encode(texts, pairs)
    for row, (text, pair) in enumerate(examples):
        ids, segments = slow(text, pair, max_length)
        padding = [0] * (encoded["input_ids"].shape[1] - len(ids))
        assert encoded["input_ids"][row].tolist() == ids + padding
        assert encoded["segments"][row].tolist() == segments + padding


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.sampled_from([8, 16]))
def test_hashed_single_texts_are_cut_at_the_end(texts, max_length):
    encoded = HashedTokens(100, max_length).encode(texts, None)
    assert set(encoded) == {"input_ids"}
    for row, text in enumerate(texts):
        ids = [CLS, *pieces(text)[: max_length - 2], SEP]
        assert encoded["input_ids"][row].tolist() == ids + [0] * (encoded["input_ids"].shape[1] - len(ids))


def test_long_words_share_their_first_piece():
    together, alone = pieces("espressomaschine"), pieces("espressotasse")
    assert together[:2] == alone[:2] and together != alone


def test_numbers_are_pieces_of_their_own():
    assert pieces("gtx1080") == pieces("gtx 1080")
    assert pieces("15kg")[1] == pieces("20kg")[1]


def test_no_texts_give_no_rows():
    assert HashedTokens(100, 8).encode([], [])["input_ids"].shape == (0, 3)
    assert HashedTokens(100, 8).encode([], None)["input_ids"].shape == (0, 2)


def test_broken_tokenizer_is_refused():
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        PretrainedTokens("{}", 0, 16)


def test_encoded_ids_are_integers_that_models_can_index_with():
    encoded = HashedTokens(100, 16).encode(["a b"], ["c"])
    assert encoded["input_ids"].dtype == np.int64


@pytest.mark.parametrize(("rows", "length"), [(3, 64), (1, 64), (-1, 64), (100, 7), (100, 65_537), (100, 10**30)])
def test_hashed_tokens_have_bounds(rows, length):
    with pytest.raises(ModelError, match=r"at least 4 rows|must be 8 to 65,536"):
        HashedTokens(rows, length)


def test_the_least_table_has_one_row_for_pieces():
    assert HashedTokens(4, 8).encode(["a b"], None)["input_ids"].tolist() == [[CLS, 3, 3, SEP]]
