"""Batches of examples of similar length, to reduce padding."""

import torch
from torch import Tensor

_BUCKET_BATCHES = 50


def bucketed_batches(sizes: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return one epoch of shuffled batches of examples with similar ``sizes`` ``[n]``: within every 50 batches of a
    random order, examples are sorted by size to reduce padding; then the batches are shuffled."""
    shuffled = torch.randperm(len(sizes), generator=generator)
    batches: list[Tensor] = []
    for start in range(0, len(shuffled), batch_size * _BUCKET_BATCHES):
        bucket = shuffled[start : start + batch_size * _BUCKET_BATCHES]
        bucket = bucket[torch.argsort(sizes[bucket], stable=True)]
        batches += [bucket[first : first + batch_size] for first in range(0, len(bucket), batch_size)]
    return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]
