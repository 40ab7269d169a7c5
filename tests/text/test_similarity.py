"""Cosines of hashed texts are those of counting by hand, whatever part of a product is in memory at once."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from fed_distill.text import similarity
from fed_distill.text.similarity import bags, largest_cosine

# words of one character share no feature with each other, and each has as many features as another
OWN = ["a", "a b b b", "c"]
PROXY = ["a", "b", "a b", "c c", "d", ""]


def test_the_largest_cosine_is_what_it_is_by_hand():
    expected = [1.0, 0.9**0.5, (0.1**0.5 + 0.9**0.5) / 2**0.5, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(largest_cosine(bags(PROXY), bags(OWN)), expected, rtol=1e-6)


def test_both_texts_of_a_pair_count_and_their_roles_do_not():
    found = largest_cosine(bags(["a", "b", "a"], ["b", "a", "c"]), bags(["a"], ["b"]))
    np.testing.assert_allclose(found, [1.0, 1.0, 0.5], rtol=1e-6)


def test_without_examples_there_is_no_similarity():
    found = largest_cosine(bags(PROXY), bags([]))
    assert found.dtype == np.float32
    assert not found.any()
    assert len(largest_cosine(bags([]), bags(OWN))) == 0


@pytest.mark.parametrize("cells", [1, 7, 10_000])
def test_a_product_in_parts_is_that_of_scikit_learn(monkeypatch, cells):
    monkeypatch.setattr(similarity, "_CELLS", cells)
    draws = np.random.default_rng(0)
    words = ["red shoe", "blue shoe", "running", "kettle", "steel kettle 2l", "phone", "phone case"]
    texts = [" ".join(draws.choice(words, 3)) for _ in range(40)]
    proxy, own = bags(texts[:25], texts[15:]), bags(texts[25:])
    expected = cosine_similarity(proxy, own).max(axis=1)
    found = largest_cosine(proxy, own)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.max() <= 1.0
