"""Recommenders without weights, against counts by hand and a slow twin."""

import math
from itertools import product

import numpy as np

from fed_distill.data.examples import Examples, Task
from fed_distill.evaluation.recommenders import item_knn, popularity, repeat

TASK = Task("next-basket", ("bought", "not_bought"), pair=True, positive="bought", gains=(1.0, 0.0))
PURCHASES = [
    ("tea ; milk", "bread", 0),
    ("tea", "bread", 0),
    ("milk ; jam", "tea", 0),
    ("milk", "bread", 1),
    ("jam", "jam", 0),
    ("jam ; milk", "soap", 1),
]


def table(rows: list[tuple[str, str, int]]) -> Examples:
    texts, pairs, labels = zip(*rows, strict=True)
    numbers = np.zeros(len(rows), dtype=np.int64)
    return Examples(tuple(texts), tuple(pairs), np.array(labels), numbers, ("shop",) * len(rows))


TRAIN = [table(PURCHASES[:4]), table(PURCHASES[4:])]
ITEMS = ("tea", "milk", "bread", "jam", "soap", "never seen")
ASKED = table([(text, item, 0) for text, item in product(("tea", "milk ; jam", "never seen ; tea"), ITEMS)])


def test_popularity_counts_what_was_bought():
    found = popularity(TRAIN, TASK)(ASKED)
    assert found.tolist() == [1, 0, 2, 1, 0, 0] * 3  # soap was shown and not bought


def test_repeat_puts_the_history_first_and_then_the_popular():
    found = repeat(TRAIN, TASK)(ASKED).reshape(3, -1)
    assert [ITEMS[at] for at in np.argsort(-found[1], kind="stable")] == [
        "jam", "milk", "bread", "tea", "soap", "never seen",
    ]  # fmt: skip
    assert ITEMS[int(found[2].argmax())] == "tea"


def test_repeat_puts_first_what_was_bought_most_often():
    asked = table([("jam ; milk ; jam ; soap ; soap ; jam", item, 0) for item in ITEMS])
    found = repeat(TRAIN, TASK)(asked)
    assert [ITEMS[at] for at in np.argsort(-found, kind="stable")] == [
        "jam", "soap", "milk", "bread", "tea", "never seen",
    ]  # fmt: skip


def slow_cosine(bought: str, before: str) -> float:
    """Deshpande and Karypis 2004, section 4.1: freq(ij) / sqrt(freq(i) freq(j)), over purchases and their histories."""
    positive = [(text.split(" ; "), item) for text, item, label in PURCHASES if label == 0]
    both = sum(item == bought and before in text for text, item in positive)
    counts = sum(item == bought for _, item in positive), sum(before in text for text, _ in positive)
    return both / math.sqrt(counts[0] * counts[1]) if both else 0.0


def test_item_knn_sums_the_cosines_of_a_slow_twin():
    found = item_knn(TRAIN, TASK)(ASKED)
    slow = [
        sum(slow_cosine(item, before) for before in text.split(" ; "))
        for text, item in zip(ASKED.texts, ASKED.pairs, strict=True)
    ]
    assert max(slow) > 1.0
    np.testing.assert_allclose(found, slow)
