"""What the head of a history-tower is given."""

import pytest
import torch

from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.models import build_student

HISTORY = "oat milk 1 l ; rye bread ; organic oat milk 1 l ; oat milk 1 l ; oat milk 1 l ; rye bread"
CANDIDATES = ["oat milk 1 l", "rye bread", "oat milk 2 l", "bread", "organic oat milk"]


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


def test_a_history_is_its_distinct_titles_latest_first(model):
    encoded = model.encode([HISTORY, "rye bread", ""], ["x"] * 3)
    bags = model.encode([""] * 3, ["rye bread", "oat milk 1 l", "organic oat milk 1 l"])["pair_ids"]
    used = min(bags.shape[1], encoded["text_ids"].shape[2])
    assert encoded["text_ids"][0, :, :used].tolist() == bags[:, :used].tolist()
    assert not encoded["text_ids"][1, 1:].any() and not encoded["text_ids"][2].any()


def test_products_of_the_same_words_have_vectors_of_their_own(model):
    titles = ["oat milk with vanilla", "vanilla with oat milk"]
    ids = model.encode([""] * 2, titles)["pair_ids"]
    assert sorted(ids[0, 1:].tolist()) == sorted(ids[1, 1:].tolist())
    assert ids[0, 0] != ids[1, 0]
    cut = build_student("history-tower", {"rows": 500, "width": 16, "max_features": 2}, NEXT_BASKET)
    assert cut.encode([""] * 2, titles)["pair_ids"].tolist() == ids[:, :2].tolist(), "the whole title is never cut"


@pytest.mark.parametrize("history", [1, 4])
def test_how_often_and_how_lately_it_was_bought_counts_the_whole_history(history):
    model = build_student("history-tower", {"rows": 500, "width": 16, "history": history}, NEXT_BASKET)
    encoded = model.encode([HISTORY] * 5, CANDIDATES)
    assert encoded["pair_bought"].tolist() == [[3, 2], [2, 1], [0, 0], [0, 0], [0, 0]]
    assert encoded["text_ids"].shape[1] == min(history, 3)


def test_the_head_is_told_how_often_and_how_lately(read):
    cosines, logs, again = read[0][:, :4], read[0][:, 4:6], read[0][:, 6]
    expected = torch.tensor([[4.0, 3.0], [3.0, 2.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(logs, expected.log())
    assert again.tolist() == [1, 1, 0, 0, 0]
    assert 0.5 < cosines[4, 2] < 1.0, "a similar title"
    assert (cosines[:, 3] == 0).all(), "a place without a title"


def test_candidates_that_nobody_bought_have_as_many_inputs(model):
    batch = model.collate(model.encode([HISTORY] * 2, ["x", "y"]), torch.arange(2))
    assert model(batch).logits.shape == (2, 2)


def test_the_head_has_the_candidate_alone(read):
    torch.testing.assert_close(read[0][:, 7:], 4.0 * read[1])
