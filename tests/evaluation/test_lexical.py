"""BM25 against Robertson and Zaragoza 2009, equation 3.15, by hand."""

import math

import numpy as np
import pytest

from fed_distill.data.examples import Examples
from fed_distill.evaluation.lexical import bm25, words_of

TITLES = ("usb hub", "usb cable usb", "tea maker black 1l", "usb hub")


def asked(*pairs):
    queries, titles = zip(*pairs, strict=True)
    numbers = np.zeros(len(pairs), dtype=np.int64)
    return Examples(queries, titles, numbers, numbers, ("shop",) * len(pairs))


def test_a_score_is_that_of_the_formula():
    """Three distinct titles of 2, 3 and 4 words, mean 3; usb is in two of them, cable in one."""
    usb, cable = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    longer = 1 - 0.75 + 0.75 * 3 / 3
    expected = usb * 2 / (2 + 1.2 * longer) + cable * 1 / (1 + 1.2 * longer)
    assert bm25(TITLES)(asked(("USB cable", "usb cable usb")))[0] == pytest.approx(expected)


def test_a_word_that_no_title_had_weighs_most_and_an_unshared_one_nothing():
    found = bm25(TITLES)(asked(("new", "new"), ("usb", "usb"), ("tea", "usb hub"), ("", "usb hub")))
    assert found[0] == pytest.approx(math.log(1 + 3.5 / 0.5) / (1 + 1.2 * (0.25 + 0.75 / 3)))
    assert found[0] > found[1] > 0.0
    assert found[2:].tolist() == [0.0, 0.0]


def test_words_of_several_scripts():
    assert words_of("Maßband, 5m (ＲＯＴ)") == ("massband", "5m", "rot")
    assert words_of("红色usb线") == ("红", "色", "usb", "线")
    assert bm25([])(asked(("a", "a")))[0] > 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("किताब की दुकान", ("किताब", "की", "दुकान")),
        ("السَّلام عليكم", ("السَّلام", "عليكم")),
        ("สวัสดีครับ", ("สวัสดีครับ",)),
        ("é ★\ufe0f usb\ufe0f", ("é", "usb")),
    ],
)
def test_marks_belong_to_their_letters(text, words):
    assert words_of(text) == words
