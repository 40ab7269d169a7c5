"""A chain's bytes for a tensor, and back."""

import pytest
import torch

from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.stream import Reader, Writer


@pytest.fixture(scope="session")
def through():
    """A function (stages, float32 tensor, seed) -> what the receiver gets, and in how many bytes."""

    def travel(stages, value, seed=0):
        chain, out = Chain(tuple(stages)), Writer()
        chain.encode(value, out, torch.Generator().manual_seed(seed))
        source = Reader(out.content())
        got = chain.decode(tuple(value.shape), source)
        source.finish()
        return got, len(out.content())

    return travel
