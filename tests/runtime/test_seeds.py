"""Streams of random numbers: named by seed and parts, apart from each other and from global state."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.runtime import seeds

PARTS = st.lists(st.one_of(st.integers(0, 99), st.sampled_from(["batches", "merchant-1", "merchant-11"])), max_size=4)


def draws(seed, *parts):
    return (
        seeds.numpy_stream(seed, *parts).random(4).tolist(),
        torch.rand(4, generator=seeds.torch_stream(seed, *parts)).tolist(),
    )


@given(st.integers(0, 2**40), PARTS)
def test_the_same_parts_give_the_same_stream(seed, parts):
    assert draws(seed, *parts) == draws(seed, *parts)


@given(st.integers(0, 99), PARTS, st.integers(0, 99), PARTS)
def test_different_parts_give_different_streams(seed, parts, other_seed, other_parts):
    if (seed, parts) != (other_seed, other_parts):
        one, other = draws(seed, *parts), draws(other_seed, *other_parts)
        assert one[0] != other[0]
        assert one[1] != other[1]


def test_parts_do_not_run_into_each_other():
    assert seeds.derive(1, "ab", "c") != seeds.derive(1, "a", "bc")
    assert seeds.derive(1, 2, 3) != seeds.derive(1, 23)
    assert seeds.derive(12, 3) != seeds.derive(1, 23)


@pytest.mark.parametrize(
    ("parts", "seed"), [((0,), 3456079177858693020), ((7, "fedavg", "merchant-1", 3), 6134644401055812363)]
)
def test_seeds_are_frozen(parts, seed):
    """The first 63 bits of sha256 of the parts joined by the unit separator, as `printf ... | sha256sum` gives them."""
    assert seeds.derive(*parts) == seed


def test_streams_are_frozen():
    assert seeds.numpy_stream(7, "fedavg", "merchant-1", 3).integers(0, 1000, 5).tolist() == [89, 651, 587, 145, 50]
    generator = seeds.torch_stream(7, "fedavg", "merchant-1", 3)
    assert torch.randint(1000, (5,), generator=generator).tolist() == [791, 682, 245, 759, 209]


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    alone = draws(3, "a")
    draws(3, "b")
    torch.rand(5)
    np.random.default_rng().random(3)
    assert draws(3, "a") == alone


def test_a_scope_gives_code_that_draws_globally_its_own_stream():
    with seeds.scope(5, "init"):
        first = torch.rand(3)
    torch.rand(2)
    with seeds.scope(5, "init"):
        again = torch.rand(3)
    with seeds.scope(5, "dropout"):
        other = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_scope_leaves_the_global_state_as_it_was_even_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeds.scope(5, "init"):
        torch.rand(10)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
