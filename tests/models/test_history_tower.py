"""What the head of a history-tower is given."""

import pytest
import torch

from fed_distill.data.tasks import NEXT_BASKET
from fed_distill.models import build_student
from fed_distill.models.history_tower import SAME

HISTORY = "oat milk 1 l ; organic oat milk 1 l ; rye bread"
CANDIDATES = ["oat milk 1 l", "rye bread", "oat milk 2 l", "Rye  BREAD", "organic oat milk"]


@pytest.fixture
def read():
    """The head's input for the history and each candidate: cosines, same title or not, any of them; latest first."""
    torch.manual_seed(0)
    model = build_student("history-tower", {"rows": 500, "width": 16, "history": 4}, NEXT_BASKET)
    encoded = model.encode([HISTORY] * len(CANDIDATES), CANDIDATES)
    text, pair = model.vectors(encoded["text_ids"]), model.vectors(encoded["pair_ids"])
    tail = model.compared(text, pair)[:, 2 * 16 + 1 :]
    return tail[:, :4], tail[:, 4:8], tail[:, 8], tail[:, 9:], pair


def test_only_the_title_itself_was_bought_before(read):
    cosines, same, again, _, _ = read
    assert same.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert again.tolist() == [1, 1, 0, 1, 0]
    assert 0.5 < cosines[4, 1] < SAME, "a similar title has a large cosine, and is another"
    assert (cosines[:, 3] == 0).all(), "a place without a title"


def test_the_head_has_the_candidate_alone(read):
    *_, alone, pair = read
    torch.testing.assert_close(alone, 4.0 * pair)
