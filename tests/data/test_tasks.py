import math

import pytest

from fed_distill.data.examples import UNLABELED
from fed_distill.data.tasks import RECOMMEND, RELEVANCE, category_task, choose_task, label_reader
from fed_distill.errors import ConfigError, DataError


def test_relevance_has_the_gains_of_esci() -> None:
    assert dict(zip(RELEVANCE.classes, RELEVANCE.gains or (), strict=True)) == {
        "exact": 1.0, "substitute": 0.1, "complement": 0.01, "irrelevant": 0.0,
    }  # fmt: skip
    assert (RELEVANCE.headline, RELEVANCE.positive_index) == ("ndcg@10", 0)
    assert (RECOMMEND.headline, RECOMMEND.positive_index) == ("macro_f1", 1)


def test_the_most_frequent_category_is_positive() -> None:
    task = category_task(["tv", "fridge", "tv", None, float("nan"), ""])
    assert task.classes == ("fridge", "tv")
    assert task.positive == "tv"


def test_one_category_is_not_a_task() -> None:
    with pytest.raises(DataError, match=r"at least two classes.*'tv'"):
        category_task(["tv", "tv"])


@pytest.mark.parametrize(
    ("value", "index"),
    [("exact", 0), (" Substitute ", 1), ("IRRELEVANT", 3), (2, UNLABELED), ("2", UNLABELED),
     ("maybe", UNLABELED), (None, UNLABELED), (math.nan, UNLABELED), ("", UNLABELED), (0.5, UNLABELED)],
)  # fmt: skip
def test_grades_are_read_by_name_and_never_by_number(value: object, index: int) -> None:
    assert label_reader(RELEVANCE)(value) == index


@pytest.mark.parametrize(
    ("value", "index"),
    [("not recommend", 0), ("Not-Recommend", 0), (True, 1), (False, 0), ("1", 1), (1.0, 1), (2, UNLABELED)],
)
def test_labels_may_be_spelled_loosely(value: object, index: int) -> None:
    assert label_reader(RECOMMEND)(value) == index


def test_classes_that_are_called_by_numbers_have_no_index() -> None:
    """An id that no class has is an error, not the class at that place."""
    task = category_task(["5", "1", "5"])
    assert [label_reader(task)(value) for value in ("1", 5, "0")] == [0, 1, UNLABELED]


def test_a_loose_spelling_of_two_classes_is_neither() -> None:
    task = category_task(["Tea Maker", "tea-maker", "Kettle"])
    read = label_reader(task)
    assert [task.classes[read(name)] for name in ("Tea Maker", "tea-maker", "KETTLE")] == [
        "Tea Maker",
        "tea-maker",
        "Kettle",
    ]
    assert read("TEA MAKER") == UNLABELED


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'sentiment'; it has: relevance, category"):
        choose_task("sentiment", "pricerunner", ("relevance", "category"))
