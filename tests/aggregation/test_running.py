"""Running means against the mean of everything at once, and what they leave alone."""

import numpy as np
import pytest
import torch

from fed_distill.aggregation.running import RunningMean, RunningUpdate
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights


def test_a_running_mean_is_the_mean_of_all_and_changes_none():
    draw = torch.Generator().manual_seed(0)
    values = [torch.rand(3, 4, generator=draw, dtype=dtype) for dtype in (torch.float64, torch.float32, torch.float64)]
    before = [value.clone() for value in values]
    mean = RunningMean()
    for value in values:
        mean.add(value)
    np.testing.assert_allclose(mean.mean().numpy(), np.mean([value.numpy() for value in before], axis=0), rtol=1e-15)
    assert all(torch.equal(value, copied) for value, copied in zip(values, before, strict=True))


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        RunningMean().mean()


def test_rows_move_by_their_own_weights_and_the_rest_stays_bit_for_bit():
    current = {"table": torch.tensor([[0.1, 0.2], [1.0, 2.0], [5.0, 7.0]]), "steps": torch.tensor([4])}
    update = RunningUpdate(current)
    assert update.names == ["table"]
    for rows, values, weights in (([0, 1], [[8.9, 8.8], [2.0, 0.0]], [0.0, 1.0]), ([1], [[6.0, 4.0]], [3.0])):
        sent = PartialWeights({"table": torch.tensor(values)}, {"table": torch.tensor(rows)})
        update.add("table", sent, torch.tensor(weights, dtype=torch.float64))
    moved = update.moved("table", torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64), rate=0.5)
    # row 1: 1, 2 plus half of (1 * (2, 0) + 3 * (6, 4)) / 4
    assert torch.equal(moved, torch.tensor([[0.1, 0.2], [3.5, 3.5], [5.0, 7.0]]))
    assert update.moved("steps", 3) is current["steps"]
