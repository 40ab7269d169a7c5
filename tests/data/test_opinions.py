"""Reviews of the marketplace's products: what is said in them, and whose they are."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.marketplace import Marketplace
from fed_distill.data.opinions import ASPECTS, PICKS, REVIEW_DRAWS, write_review
from fed_distill.data.vocabulary import LANGUAGES
from fed_distill.data.world import make_world
from fed_distill.data.writing import draw_habits

PLAIN = {"typo": 0.0, "upper": False, "lower": False, "second_share": 0.0}


def patterns(language: int) -> list[tuple[bool, re.Pattern[str]]]:
    """Every opinion of a language as a regular expression, with whether it is positive."""
    found = []
    for opinions in ASPECTS.values():
        for positive, texts in enumerate(opinions[language]):
            for text in texts:
                parts = re.split(r"\[([^\]]*)\]", text.replace("{product}", "\0"))
                written = "".join(
                    f"(?:{'|'.join(map(re.escape, part.split('/')))})" if at % 2 else re.escape(part)
                    for at, part in enumerate(parts)
                )
                found.append((bool(positive), re.compile(written.replace("\0", ".+?"))))
    return found


@pytest.mark.parametrize("language", range(len(LANGUAGES)))
@pytest.mark.parametrize("positive", [False, True])
def test_at_most_one_sentence_disagrees_and_never_the_last(language: int, positive: bool) -> None:
    """Sentences are read again by the patterns; a review is long in a quarter to three quarters of the cases."""
    world, rng = make_world(200, 0), np.random.default_rng(language)
    known, lengths, disagreeing = patterns(language), Counter(), 0
    for product in range(200):
        habits = replace(draw_habits(language, (language,), rng), **PLAIN)
        text = write_review(world, product, positive, habits, rng.random(REVIEW_DRAWS).tolist())
        assert "[" not in text and "{" not in text
        sentences = re.split(r"\. |, but |, aber |。|，但是", text)
        said = [{kind for kind, pattern in known if pattern.fullmatch(sentence)} for sentence in sentences]
        assert all(len(kinds) == 1 for kinds in said), text
        agrees = [kinds == {positive} for kinds in said]
        assert agrees[-1] and agrees.count(False) <= 1, text
        assert (not all(agrees)) == bool(re.search(", but |, aber |，但是", text)), text
        lengths[len(sentences)] += 1
        disagreeing += not all(agrees)
    assert set(lengths) == {2, 3} and 50 < lengths[2] < 150
    assert 20 < disagreeing < 80  # a quarter of 200


def test_no_pattern_has_more_alternatives_than_there_are_draws() -> None:
    texts = [text for by_language in ASPECTS.values() for both in by_language for one in both for text in one]
    assert max(text.count("[") for text in texts) <= PICKS
    assert all(len(by_language) == len(LANGUAGES) for by_language in ASPECTS.values())


def test_reviews_are_of_the_merchants_that_sell_and_are_asked() -> None:
    """The same stores have offers, questions and reviews, in their own shares of praise."""
    shop = Marketplace(merchants=6, rows=60)
    world = make_world(600, 0)
    written = [shop.reviews(world), shop.questions(world)]
    assert set(written[0].merchants) == set(written[1].merchants) == set(shop.offers(world).merchants)
    merchants = np.array(written[0].merchants)
    praise = [written[0].labels[merchants == name].mean() for name in sorted(set(merchants))]
    assert max(praise) - min(praise) > 0.2
    assert shop.reviews(world).texts == written[0].texts


def test_sentiment_is_a_task_of_the_marketplace() -> None:
    data = load(DataConfig(task="sentiment", options={"merchants": 8, "rows": 80}, proxy_from="catalogue"))
    assert data.task.classes == ("negative", "positive") and data.task.gains is None
    assert all(set(one.train.labels.tolist()) == {0, 1} for one in data.merchants.values())
    assert not set(data.public.texts) & set(data.test.texts)
