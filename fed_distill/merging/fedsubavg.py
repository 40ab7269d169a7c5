"""Federated submodel averaging: an embedding row is averaged over the merchants that have the feature.

Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022: a plain mean
divides a row's update by all merchants, also by those that never saw the feature, so rare features hardly
move. Dividing by the merchants that touched the row removes that bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.errors import UplinkRejected
from fed_distill.transport.messages import PartialWeights, Uplink, Weights


@dataclass
class FedSubAvg:
    """server_learning_rate: factor on the averaged update; 1 takes the average itself."""

    server_learning_rate: float = 1.0

    def average(self, current: Weights, uplinks: Sequence[Uplink]) -> Weights:
        """Mean update weighted by examples: over all merchants, or, for a table's row, over those that sent it."""
        sent = [(uplink.examples, uplink.weights) for uplink in uplinks if uplink.weights is not None]
        if not sent:
            raise UplinkRejected("no merchant sent weights that could be merged")
        return {name: self._average_one(name, value, sent) for name, value in current.items()}

    def _average_one(self, name: str, value: Tensor, sent: Sequence[tuple[int, PartialWeights]]) -> Tensor:
        if not value.is_floating_point():
            return value
        update = torch.zeros_like(value)
        weight = torch.zeros(len(value) if value.dim() else 1)
        for examples, weights in sent:
            rows = weights.rows.get(name)
            if rows is None:
                update += examples * (weights.arrays[name] - value)
                weight += examples
            else:
                update[rows] += examples * (weights.arrays[name] - value[rows])
                weight[rows] += examples
        scale = self.server_learning_rate / weight.clamp_min(1.0)
        return value + update * scale.reshape([-1] + [1] * (value.dim() - 1) if value.dim() else [])

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
