import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data.labeled import LabeledRows, factorize, grow_keys
from fed_distill.data.tasks import RECOMMEND, RELEVANCE
from fed_distill.errors import DataError

CONFIG = DataConfig()


def graded() -> LabeledRows:
    """Three queries: one with two grades, one with a single grade, one with four candidates of which two are equal."""
    table = [
        ("q1", "a", 0), ("q1", "b", 3),
        ("q2", "a", 0), ("q2", "c", 0),
        ("q3", "a", 1), ("q3", "b", 2), ("q3", "c", 3), ("q3", "c", 3),
    ]  # fmt: skip
    texts, pairs, labels = zip(*table, strict=True)
    return LabeledRows.build(RELEVANCE, texts, labels, CONFIG, pairs=pairs, merchants=["x"] * 7 + ["y"])


def test_queries_with_two_grades_or_more_are_ranked() -> None:
    ranking = graded().ranking(np.arange(8), "test", 0)
    assert ranking is not None
    found = {
        (ranking.examples.texts[row], (ranking.examples.pairs or ())[row], int(ranking.examples.labels[row]))
        for row in range(5)
    }
    assert found == {("q1", "a", 0), ("q1", "b", 3), ("q3", "a", 1), ("q3", "b", 2), ("q3", "c", 3)}
    assert len(ranking.queries) == 5
    for number in (0, 1):
        assert len({ranking.examples.texts[row] for row in np.flatnonzero(ranking.queries == number)}) == 1


def test_rows_of_one_query_belong_together_for_relevance() -> None:
    assert graded().groups.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_rows_of_one_product_belong_together_for_recommend() -> None:
    rows = LabeledRows.build(
        RECOMMEND, ["h1", "h2", "h3"], [0, 1, 1], CONFIG, pairs=["p", "q", "p"], merchants=["x", "x", "y"]
    )
    assert rows.groups.tolist() == [0, 1, 0]
    assert rows.ranking(np.arange(3), "test", 0) is None


def test_a_proxy_of_pairs_crosses_texts_when_rows_do_not_suffice() -> None:
    source = graded()
    own = source.proxy(np.arange(8), 7, 0)
    rows = set(zip(source.texts, source.pairs or (), strict=True))
    assert set(zip(own.texts, own.pairs or (), strict=True)) == rows
    crossed = source.proxy(np.arange(8), 9, 0)
    assert set(zip(crossed.texts, crossed.pairs or (), strict=True)) == {
        (q, p) for q in ("q1", "q2", "q3") for p in "abc"
    }
    assert len(source.proxy(np.arange(8), 10, 0)) == 9


def test_no_row_left_says_why() -> None:
    with pytest.raises(DataError, match=r"no row is left of 2: dropped 1 empty, 1 unknown label"):
        LabeledRows.build(RELEVANCE, ["", "q"], [0, -1], CONFIG, pairs=["a", "b"], merchants=["x", "x"])


def test_pairs_must_fit_the_task() -> None:
    with pytest.raises(DataError, match=r"relevance requires two texts"):
        LabeledRows.build(RELEVANCE, ["q"], [0], CONFIG, merchants=["x"])


def test_factorize_numbers_in_order_of_appearance() -> None:
    assert factorize(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("size", [3, 50, 1000])
def test_grown_keys_keep_the_first_and_are_distinct(size: int) -> None:
    first = np.array([7, 999, 0])
    keys = grow_keys(first, 20, 50, size, np.random.default_rng(0))
    assert keys[:3].tolist() == [7, 999, 0]
    assert len(set(keys.tolist())) == len(keys) == size
    assert keys.min() >= 0
    assert keys.max() < 1000
