"""Votes of merchants on the label of a public example, counted without privacy."""

import torch
from torch import Tensor

NO_ANSWER = -1
"""The answer to an example on which too few merchants agree."""


def plurality(histogram: Tensor) -> Tensor:
    """The class with the most votes, int64 ``[queries]``, of ``[queries, classes]`` votes; the first of equals."""
    return histogram.argmax(dim=-1)


def counted_plainly(histogram: Tensor) -> Tensor:
    """Answers without privacy: what most say, and nothing where nobody voted."""
    return torch.where(histogram.sum(dim=-1) > 0, plurality(histogram), NO_ANSWER)
