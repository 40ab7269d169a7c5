"""A weighted bag of table rows: the sum of a text's features, each with a learned weight.

One leaf module owns both tables, so that a trainer which needs more than a gradient (Opacus' hooks, a cohort's
stacked weights) can treat the lookup as one layer. The rows are summed as they are read, never gathered first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedBag(nn.Module):
    """Sums rows of ``table`` ``[rows, width]``, each times exp of its ``importance`` ``[rows, 1]``.

    Row 0 is padding: it has weight 0, whatever it holds, and never a gradient.
    """

    def __init__(self, rows: int, width: int, spread: float = 1.0) -> None:
        """spread: standard deviation of the table's entries at the start. All weights start as exp(0)."""
        super().__init__()
        self.table = nn.Parameter(torch.empty(rows, width).normal_().mul_(spread))
        # Drawn, then zeroed: the modules made after this one keep the weights that a seed always gave them.
        self.importance = nn.Parameter(torch.empty(rows, 1).normal_().zero_())
        with torch.no_grad():
            self.table[0] = 0.0

    def weights(self, ids: Tensor) -> Tensor:
        """What each row counts for, ``[batch, features]``: exp(importance), and 0 for padding."""
        importance = F.embedding(ids, self.importance, padding_idx=0).squeeze(-1)
        return torch.where(ids > 0, importance.exp(), 0.0)

    def forward(self, ids: Tensor) -> Tensor:
        """The weighted sum ``[batch, width]`` of the rows ``ids`` (integers ``[batch, features]``, 0 for padding)."""
        return F.embedding_bag(ids, self.table, per_sample_weights=self.weights(ids), mode="sum", padding_idx=0)
