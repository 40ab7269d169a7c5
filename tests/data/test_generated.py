"""A generated proxy set: words of public texts in an order that occurs there, queries from titles."""

from itertools import pairwise

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.data.generated import generated
from fed_distill.errors import ConfigError, DataError

TITLES = (
    "acme phone 64 gb black",
    "acme phone 128 gb white",
    "bolt tablet 64 gb white case",
    "bolt phone case black",
    "acme tablet 128 gb",
    "nord camera 24 mm lens kit",
    "nord lens 50 mm black",
)
QUERIES = ("acme phone", "phone 128", "bolt tablet case", "phone case", "tablet", "nord camera", "lens")


def public(texts, pairs=None):
    count = len(texts)
    return Examples(texts, pairs, np.zeros(count, dtype=np.int64), np.arange(count), ("shop",) * count)


def follows(texts):
    """Words that begin a text, that follow each other, and that end one: a slow rendering of the model."""
    return {pair for text in texts for pair in pairwise([None, *text.split(), None])}


def test_titles_are_walks_over_words_that_follow_each_other_and_most_are_new():
    made = generated(public(QUERIES, TITLES), 30, seed=3)
    assert len(made) == 30 == len(set(made.pairs))
    longest = max(len(title.split()) for title in TITLES)
    for title in made.pairs:
        steps = list(pairwise([None, *title.split(), None]))
        assert len(title.split()) <= longest
        cut = steps[:-1] if len(title.split()) == longest else steps
        assert set(cut) <= follows(TITLES)
    assert len(set(made.pairs) - set(TITLES)) > 15


def test_queries_are_words_of_titles_as_many_as_queries_have():
    made = generated(public(QUERIES, TITLES), 36, seed=3)
    known = {len(query.split()) for query in QUERIES}
    assert {len(query.split()) for query in made.texts} <= known
    for place, (query, title) in enumerate(zip(made.texts, made.pairs, strict=True)):
        shared = set(query.split()) & set(title.split())
        if place % 3 == 0:  # of this title: its words in their order
            words = iter(title.split())
            assert all(word in words for word in query.split())
        elif place % 3 == 1:
            source = [one for one in made.pairs if set(query.split()) <= set(one.split())]
            assert any(set(one.split()) & set(title.split()) for one in source)
        else:
            assert len(shared) <= len(query.split())
    apart = [not set(query.split()) & set(title.split()) for query, title in zip(made.texts, made.pairs, strict=True)]
    assert 0 < sum(apart) < 24


def test_nothing_but_texts_is_taken_over():
    made = generated(public(QUERIES, TITLES), 12, seed=0)
    assert made.labels.tolist() == [UNLABELED] * 12
    assert made.groups.tolist() == list(range(12))
    assert set(made.merchants) == {"generated"}


def test_the_same_seed_gives_the_same_examples_and_another_one_others():
    one, same, other = (generated(public(QUERIES, TITLES), 20, seed=seed) for seed in (1, 1, 2))
    assert (one.texts, one.pairs) == (same.texts, same.pairs)
    assert one.pairs != other.pairs


def test_single_texts_have_no_pairs():
    made = generated(public(TITLES), 10, seed=0)
    assert made.pairs is None
    assert all(set(pairwise(text.split())) <= follows(TITLES) for text in made.texts)


def test_texts_without_spaces_are_recombined_by_character():
    made = generated(public(("质量很好", "很好用", "质量不好用")), 4, seed=0)
    steps = {pair for text in ("质量很好", "很好用", "质量不好用") for pair in pairwise(text)}
    assert all(set(pairwise(text)) <= steps for text in made.texts)
    assert not any(" " in text for text in made.texts)


def test_too_few_texts_give_fewer_examples():
    made = generated(public(("only this",)), 10, seed=0)
    assert made.texts == ("only this",)


def config(**changes):
    options = {"merchants": 8, "rows": 36, "ranking_queries": 12, "ranking_candidates": 6}
    given = {"dataset": "marketplace", "min_rows": 20, "proxy_size": 150, "proxy_from": "generated", "options": options}
    return DataConfig.model_validate({**given, **changes})


@pytest.mark.parametrize("choice", ["random", "coverage"])
def test_a_generated_proxy_set_has_the_servers_words_in_other_texts(choice):
    data, own = (load(config(proxy_choice=choice, proxy_from=kind)) for kind in ("generated", "public"))
    words = {word for text in (*data.public.texts, *data.public.pairs) for word in text.split()}
    proxy = data.proxy
    assert len(proxy) == 150 == len(set(zip(proxy.texts, proxy.pairs, strict=True)))
    assert {word for text in (*proxy.texts, *proxy.pairs) for word in text.split()} <= words
    assert len(set(proxy.pairs) - set(data.public.pairs)) > 75
    assert set(proxy.merchants) == {"generated"}
    assert min(proxy.groups) > max(data.public.groups)
    assert data.proxy_truth is None
    assert (data.test.texts, data.merchants.keys()) == (own.test.texts, own.merchants.keys())


def test_what_cannot_be_generated_is_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"no histories of clicks: for task recommend, set it to 'catalogue'"):
        load(config(task="recommend"))
    with pytest.raises(ConfigError, match=r"data\.proxy_dataset and data\.proxy_from = 'generated' exclude each other"):
        load(config(proxy_dataset="marketplace"))


def test_without_texts_there_is_an_error_with_the_remedy():
    with pytest.raises(DataError, match=r"without public texts: raise data\.public_share"):
        generated(public((" ",)), 10, seed=0)
