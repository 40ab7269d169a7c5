"""Federated submodel averaging: an embedding row is averaged over the merchants that have the feature.

Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022: a plain mean
divides a row's update by all merchants, also by those that never saw the feature, so rare features hardly
move. Dividing by the merchants that touched the row removes that bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.transport.messages import Uplink, Weights


@dataclass
class FedSubAvg:
    """server_learning_rate: factor on the averaged update; 1 takes the average itself."""

    server_learning_rate: float = 1.0

    def average(self, current: Weights, uplinks: Sequence[Uplink]) -> Weights:
        """Mean update weighted by examples: over all merchants, or, for a table's row, over those that sent it."""
        return {name: self._average_one(name, value, uplinks) for name, value in current.items()}

    def _average_one(self, name: str, value: Tensor, uplinks: Sequence[Uplink]) -> Tensor:
        if not value.is_floating_point():
            return value
        update = torch.zeros_like(value)
        weight = torch.zeros(len(value) if value.dim() else 1)
        for uplink in uplinks:
            if uplink.weights is None:
                continue
            sent = uplink.weights.arrays[name]
            rows = uplink.weights.rows.get(name)
            if rows is None:
                update += uplink.examples * (sent - value)
                weight += uplink.examples
            else:
                update[rows] += uplink.examples * (sent - value[rows])
                weight[rows] += uplink.examples
        scale = self.server_learning_rate / weight.clamp_min(1.0)
        return value + update * scale.reshape([-1] + [1] * (value.dim() - 1) if value.dim() else [])

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
