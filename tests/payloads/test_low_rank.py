"""Low-rank factors: the best of their rank by numpy's decomposition, never more numbers than the matrix itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.low_rank_update import LowRankUpdate, factors, most_rank, product, rank_for_energy

MATRICES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(-100, 100, width=32)
).map(torch.from_numpy)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_largest_rank_is_where_factors_stop_saving(rows, columns):
    rank = most_rank(rows, columns)
    assert rank >= 0
    assert not rank or rank * (rows + columns) < rows * columns
    assert (rank + 1) * (rows + columns) >= rows * columns


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ([3.0, 2.0, 1.0], 9 / 14 - 0.01, 1),
        ([3.0, 2.0, 1.0], 9 / 14 + 0.01, 2),
        ([3.0, 2.0, 1.0], 0.95, 3),
        ([3.0, 2.0, 0.0], 1.0, 2),
        ([1.0, 1.0, 1.0, 1.0], 0.5, 2),
        ([0.0, 0.0], 0.5, 1),
    ],
)
def test_the_rank_keeps_the_energy_and_never_falls_to_nothing(values, energy, rank):
    assert rank_for_energy(torch.tensor(values), energy) == rank


@given(MATRICES, st.floats(0.05, 1.0))
def test_factors_lose_no_more_energy_than_allowed_and_are_fewer_numbers(matrix, energy):
    found = factors(matrix, energy)
    if found is None:
        values = np.linalg.svd(matrix.numpy().astype(np.float64), compute_uv=False)
        kept = most_rank(*matrix.shape)
        assert np.sum(values[:kept] ** 2) <= energy * np.sum(values**2) * (1 + 1e-4) + 1e-4
        return
    thin, wide = found
    assert thin.numel() + wide.numel() < matrix.numel()
    square = matrix.double().square().sum()
    lost = (product(thin, wide).double() - matrix.double()).square().sum()
    assert lost <= (1 - energy) * square + 1e-4 * square + 1e-6


@given(MATRICES, st.data())
def test_rows_and_columns_of_zeros_stay_zeros(matrix, data):
    rows = torch.from_numpy(data.draw(hnp.arrays(np.bool_, len(matrix))))
    columns = torch.from_numpy(data.draw(hnp.arrays(np.bool_, matrix.shape[1])))
    matrix[rows], matrix[:, columns] = 0.0, 0.0
    found = factors(matrix, 0.9)
    if found is not None:
        rebuilt = product(*found)
        assert not rebuilt[rows].any()
        assert not rebuilt[:, columns].any()


def test_the_rank_that_is_asked_for_is_not_exceeded():
    thin, wide = factors(torch.randn(20, 30, generator=torch.Generator().manual_seed(0)), 1.0, rank=3)
    assert (thin.shape, wide.shape) == ((3, 20), (3, 30))


def test_an_update_is_factored_where_that_is_fewer_numbers():
    draw = torch.Generator().manual_seed(0)
    thin, wide = torch.randn(2, 20, generator=draw), torch.randn(2, 10, generator=draw)
    rows = torch.arange(20)
    arrays = {
        "low": thin.T @ wide,
        "full": torch.randn(20, 10, generator=draw),
        "vector": torch.randn(10, generator=draw),
        "steps": torch.tensor([[1, 2], [3, 4]]),
    }
    update = PartialWeights(arrays, {"low": rows}, {"low": rows})
    found = LowRankUpdate.factored(update, 0.9999)
    assert {name: len(value) for name, value in found.thin.items()} == {"low": 2}
    assert set(found.plain.arrays) == {"full", "vector", "steps"}
    back = found.multiplied_out()
    assert (back.rows, back.counts) == (update.rows, update.counts)
    assert all(torch.equal(back.arrays[name], arrays[name]) for name in found.plain.arrays)
    torch.testing.assert_close(back.arrays["low"], arrays["low"], atol=1e-5, rtol=1e-4)
