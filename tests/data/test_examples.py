"""Which examples of a table belong together."""

import numpy as np
import pytest

from fed_distill.data.examples import Examples, members, most_queries
from fed_distill.errors import DataError


def table(pairs=("a", "b", "a", "c", "b")):
    texts = ("kettle", "phone", "phone", "kettle", "lamp")
    return Examples(texts, pairs, np.zeros(5, np.int64), np.array([70, 3, 70, 9, 3]), ("shop",) * 5)


@pytest.mark.parametrize(
    ("by", "expected"), [("group", [2, 0, 2, 1, 0]), ("text", [0, 1, 1, 0, 2]), ("pair", [0, 1, 0, 2, 1])]
)
def test_examples_that_share_a_number_or_a_text_are_one_member(by, expected):
    found = members(table(), by)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_a_part_of_a_table_is_numbered_without_gaps():
    assert members(table().take([1, 3]), "group").tolist() == [0, 1]
    assert members(table().take([]), "group").tolist() == members(table().take([]), "text").tolist() == []


def test_second_texts_of_a_task_that_has_none_are_refused():
    with pytest.raises(DataError, match=r'privacy\.group = "pair" needs a task with two texts: set it to "group" or'):
        members(table(pairs=None), "pair")


def test_a_validation_set_has_fewer_queries_than_a_test_set_as_it_is_scored_every_round():
    assert most_queries("test", 2000) == 2000
    assert most_queries("valid", 2000) == 400
    assert most_queries("valid", 20) == 20
