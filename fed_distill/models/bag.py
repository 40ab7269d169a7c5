"""A weighted bag of table rows: the sum of a text's features with learned weights.

One leaf module owns both tables, so that trainers with other requirements than a gradient (Opacus' hooks, a cohort's
stacked weights) can treat the lookup as one layer. Rows are summed while they are read, without a gathered copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedBag(nn.Module):
    """Sums rows of ``table`` ``[rows, width]``, each times exp of its ``importance`` ``[rows, 1]``.

    Row 0 is padding: its weight is always 0, and it has no gradient.
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
        """Return the weight of each row, ``[batch, features]``: exp(importance), and 0 for padding."""
        importance = F.embedding(ids, self.importance, padding_idx=0).squeeze(-1)
        return torch.where(ids > 0, importance.exp(), 0.0)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the weighted sum ``[batch, width]`` of the rows ``ids`` (``[batch, features]``, 0 for padding)."""
        return F.embedding_bag(ids, self.table, per_sample_weights=self.weights(ids), mode="sum", padding_idx=0)
