"""An update is what training added, and adding it gives the trained weights back."""

import numpy as np
import pytest
import torch

from fed_distill.models.weights import PartialWeights, norm_of, times, update_of, updated

START = {
    "table": torch.arange(8.0).view(4, 2),
    "half": torch.ones(2, 3, dtype=torch.float16),
    "bias": torch.tensor([1.0, -2.0]),
    "steps": torch.tensor(3),
}
ROWS = {"table": torch.tensor([1, 3])}
TRAINED = PartialWeights(
    {
        "table": torch.tensor([[2.5, 3.0], [6.0, 6.75]]),
        "half": torch.full((2, 3), 1.5, dtype=torch.float16),
        "steps": torch.tensor(9),
    },
    ROWS,
    {"table": torch.tensor([4, 2])},
)


def test_an_update_is_the_difference_in_float32_of_what_was_sent():
    update = update_of(TRAINED, START)
    assert {name: value.tolist() for name, value in update.arrays.items()} == {
        "table": [[0.5, 0.0], [0.0, -0.25]],
        "half": [[0.5] * 3] * 2,
    }
    assert {value.dtype for value in update.arrays.values()} == {torch.float32}
    assert (update.rows, update.counts) == (TRAINED.rows, TRAINED.counts)


def test_a_start_with_its_update_is_what_was_trained_in_its_own_types_and_the_rest_as_it_was():
    before = {name: value.clone() for name, value in START.items()}
    whole = updated(START, update_of(TRAINED, START))
    assert {name: value.dtype for name, value in whole.items()} == {name: value.dtype for name, value in START.items()}
    assert whole["table"].tolist() == [[0.0, 1.0], [2.5, 3.0], [4.0, 5.0], [6.0, 6.75]]
    assert whole["half"].tolist() == [[1.5] * 3] * 2
    assert whole["bias"] is START["bias"] and whole["steps"] is START["steps"]
    assert all(torch.equal(START[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (PartialWeights({"bias": torch.full((2,), float("nan"))}), "update of bias is not finite"),
        (PartialWeights({"door": torch.ones(2)}), "'door'"),
    ],
)
def test_what_is_no_update_is_named(sent, message):
    with pytest.raises(ValueError, match=message):
        update_of(sent, START)


def test_the_norm_is_that_of_one_long_vector():
    draw = np.random.default_rng(0)
    values = [draw.normal(size=shape).astype(np.float32) for shape in ((3, 4), (5,), ())]
    tensors = {str(place): torch.from_numpy(np.array(value)) for place, value in enumerate(values)}
    expected = float(np.linalg.norm(np.concatenate([value.ravel() for value in values]).astype(np.float64)))
    assert norm_of(tensors.values()) == pytest.approx(expected, rel=1e-12)
    assert norm_of(times(tensors, -3.0).values()) == pytest.approx(3.0 * expected, rel=1e-6)
    assert norm_of([]) == 0.0
