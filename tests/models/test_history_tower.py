"""What the head of a history-tower is given."""

import pytest
import torch

from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.models import build_student
from fed_distill.models.history_tower import SAME

HISTORY = "oat milk 1 l ; rye bread ; organic oat milk 1 l ; oat milk 1 l ; oat milk 1 l ; rye bread"
CANDIDATES = ["oat milk 1 l", "rye bread", "oat milk 2 l", "Rye  BREAD", "organic oat milk"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_student("history-tower", {"rows": 500, "width": 16, "history": 4}, NEXT_BASKET)


@pytest.fixture
def read(model):
    """The head's input beside that of two texts, for each candidate; titles are bread, oat milk, organic oat milk."""
    batch = model.encode([HISTORY] * len(CANDIDATES), CANDIDATES)
    vectors = [model.vectors(batch[field]) for field in model.vectors_of]
    return model.read(vectors, batch)[:, 2 * 16 + 1 :], vectors[1]


def test_a_history_is_its_distinct_titles_latest_first_with_their_counts(model):
    encoded = model.encode([HISTORY, "rye bread", ""], ["x"] * 3)
    bags = model.encode([""] * 3, ["rye bread", "oat milk 1 l", "organic oat milk 1 l"])["pair_ids"]
    used = min(bags.shape[1], encoded["text_ids"].shape[2])
    assert encoded["text_ids"][0, :, :used].tolist() == bags[:, :used].tolist()
    assert encoded["text_counts"].tolist() == [[2, 3, 1], [1, 0, 0], [1, 0, 0]]
    assert not encoded["text_ids"][1, 1:].any() and not encoded["text_ids"][2].any()


def test_titles_before_the_latest_are_not_read_and_those_that_are_count_all_purchases():
    model = build_student("history-tower", {"rows": 500, "width": 16, "history": 2}, NEXT_BASKET)
    assert model.encode([HISTORY], ["x"])["text_counts"].tolist() == [[2, 3]]


def test_only_the_title_itself_was_bought_before(read):
    cosines, same, logs, again = read[0][:, :4], read[0][:, 4:8], read[0][:, 8], read[0][:, 9]
    assert same.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(logs, torch.tensor([4.0, 3.0, 1.0, 3.0, 1.0]).log())
    assert again.tolist() == [1, 1, 0, 1, 0]
    assert 0.5 < cosines[4, 2] < SAME, "a similar title has a large cosine, and is another"
    assert (cosines[:, 3] == 0).all(), "a place without a title"


def test_the_head_has_the_candidate_alone(read):
    torch.testing.assert_close(read[0][:, 10:], 4.0 * read[1])
