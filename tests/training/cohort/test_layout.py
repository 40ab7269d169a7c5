"""Products and sums of merchants one after another against a loop over rows."""

import pytest
import torch

from fed_distill import seeds
from fed_distill.training.cohort.layout import Layout

SIZES = {
    "even": (4, 4, 4),
    "one each": (1, 1),
    "alone": (5,),
    "uneven": (3, 1, 5),
    "one without": (3, 0, 5),
    "the ends without": (0, 6, 0),
}


@pytest.fixture(params=SIZES)
def owner(request):
    return [merchant for merchant, size in enumerate(SIZES[request.param]) for _ in range(size)]


@pytest.fixture
def layout(owner, request):
    found = Layout()
    sizes = SIZES[request.node.callspec.params["owner"]]
    found.set(sizes, torch.tensor(owner))
    assert found.even == (len(set(sizes)) == 1)
    return found


positions = pytest.mark.parametrize("positions", [1, 3])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeds.torch_stream(seed), dtype=torch.float64)


def rows_of(owner, positions):
    return [merchant for merchant in owner for _ in range(positions)]


@positions
@pytest.mark.parametrize("shifted", [False, True])
def test_products_are_of_each_rows_own_merchant(shifted, positions, layout, owner):
    x, weights = drawn(len(owner) * positions, 4), drawn(len(layout.sizes), 4, 2, seed=1)
    shifts = drawn(len(layout.sizes), 2, seed=2)
    expected = [row @ weights[m] + shifted * shifts[m] for m, row in zip(rows_of(owner, positions), x, strict=True)]
    torch.testing.assert_close(layout.products(x, weights, shifts if shifted else None), torch.stack(expected))


@positions
def test_outer_products_are_summed_by_merchant(positions, layout, owner):
    left, right = drawn(len(owner) * positions, 4), drawn(len(owner) * positions, 2, seed=1)
    expected = torch.zeros(len(layout.sizes), 4, 2, dtype=torch.float64)
    for m, one, other in zip(rows_of(owner, positions), left, right, strict=True):
        expected[m] += torch.outer(one, other)
    torch.testing.assert_close(layout.outer(left, right), expected)


@positions
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_rows_are_summed_by_merchant(shape, positions, layout, owner):
    values = drawn(len(owner) * positions, *shape)
    expected = torch.zeros(len(layout.sizes), *shape, dtype=torch.float64)
    for m, one in zip(rows_of(owner, positions), values, strict=True):
        expected[m] += one
    torch.testing.assert_close(layout.sums(values), expected)


@pytest.mark.parametrize("between", [(), (3,), (2, 3)])
def test_examples_get_their_own_merchants_values(between, layout, owner):
    values, like = drawn(len(layout.sizes), 4), drawn(len(owner), *between, 4, seed=1)
    expected = torch.stack([values[m].expand(*between, 4) for m in owner])
    assert torch.equal(layout.of_examples(values, like).expand_as(like), expected)


@positions
def test_spans_are_the_rows_of_each_merchant_in_order(positions, layout, owner):
    found = [merchant for merchant, first, last in layout.spans(len(owner) * positions) for _ in range(first, last)]
    assert found == rows_of(owner, positions)
