"""Votes of merchants on the label of a public example, counted without privacy."""

import torch
from torch import Tensor

NO_ANSWER = -1
"""Label of an example without a consensus."""


def plurality(histogram: Tensor) -> Tensor:
    """Return the class with the most votes, int64 ``[queries]``, from ``[queries, classes]``; the first of ties."""
    return histogram.argmax(dim=-1)


def counted_plainly(histogram: Tensor) -> Tensor:
    """Return labels without privacy: the plurality, and no label without votes."""
    return torch.where(histogram.sum(dim=-1) > 0, plurality(histogram), NO_ANSWER)
