"""Batches of similar lengths: every example once an epoch, little padding, and another order each time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill import seeds
from fed_distill.training.batching import bucketed_batches


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_of_batches_holds_every_example_once(sizes, batch_size, seed):
    batches = bucketed_batches(torch.tensor(sizes), batch_size, seeds.torch_stream(seed))
    again = bucketed_batches(torch.tensor(sizes), batch_size, seeds.torch_stream(seed))
    assert sorted(torch.cat(batches).tolist()) == list(range(len(sizes)))
    assert all(len(batch) <= batch_size for batch in batches)
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


def test_batches_hold_examples_of_similar_length_in_an_order_that_changes():
    sizes = torch.arange(400) % 50
    stream = seeds.torch_stream(0)
    first, second = bucketed_batches(sizes, 8, stream), bucketed_batches(sizes, 8, stream)
    assert all(sizes[batch].max() - sizes[batch].min() <= 1 for batch in first)
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    means = [sizes[batch].float().mean().item() for batch in first]
    assert means != sorted(means)
