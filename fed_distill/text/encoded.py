"""The type of encoded examples."""

from collections.abc import Mapping

from torch import Tensor

Encoded = Mapping[str, Tensor]
"""Row-aligned tensors of encoded examples, each ``[examples, ...]``; zero is padding."""
