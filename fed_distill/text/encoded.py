"""The type of encoded examples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fed_distill.text.tokens import Fields

Encoded = Mapping[str, Tensor]
"""Row-aligned tensors of encoded examples, each ``[examples, ...]``; zero is padding."""


def as_tensors(fields: Fields) -> Encoded:
    """Return encoded texts as tensors that share the memory of the arrays."""
    return {name: torch.from_numpy(values) for name, values in fields.items()}
