"""Batches of examples of similar length, so that little of them is padding."""

import torch
from torch import Tensor

_BUCKET_BATCHES = 50


def bucketed_batches(sizes: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch of shuffled batches, each of examples of similar ``sizes`` ``[n]``: within every 50 batches of a random
    order, examples are sorted by size, so that little is padding; the order of the batches is random again."""
    shuffled = torch.randperm(len(sizes), generator=generator)
    batches: list[Tensor] = []
    for start in range(0, len(shuffled), batch_size * _BUCKET_BATCHES):
        bucket = shuffled[start : start + batch_size * _BUCKET_BATCHES]
        bucket = bucket[torch.argsort(sizes[bucket], stable=True)]
        batches += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]
