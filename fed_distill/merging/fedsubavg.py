"""Federated submodel averaging: an embedding row is averaged over the merchants that have the feature.

Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022: a plain mean
divides a row's update by all merchants, also by those that never saw the feature, so rare features hardly
move. Dividing by the merchants that touched the row removes that bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.transport.messages import PartialWeights, Uplink, Weights


@dataclass
class FedSubAvg:
    """Mean update of what each merchant touched; weights outside the tables are averaged by examples.

    weight: what a merchant counts for in a row's mean. ``uses``: how often its examples use the row, so that who
    knows a feature best has most say; ``examples``: all of its examples; ``merchants``: each the same, as in the
    paper. server_learning_rate: factor on the averaged update; 1 takes the average itself.
    """

    weight: Literal["uses", "examples", "merchants"] = "uses"
    server_learning_rate: PositiveFloat = 1.0

    def average(self, current: Weights, uplinks: Sequence[Uplink]) -> Weights:
        """The next global weights; rows that nobody sent stay as they are."""
        sent = [(uplink.examples, uplink.weights) for uplink in uplinks if uplink.weights is not None]
        if not sent:
            raise UplinkRejected("no merchant sent weights that could be merged")
        return {name: self._average_one(name, value, sent) for name, value in current.items()}

    def _average_one(self, name: str, value: Tensor, sent: Sequence[tuple[int, PartialWeights]]) -> Tensor:
        if not value.is_floating_point():
            return value
        if name not in sent[0][1].rows:
            total = sum(examples for examples, _ in sent)
            update = sum(
                (examples / total * (one.arrays[name] - value) for examples, one in sent), torch.zeros_like(value)
            )
            return value + self.server_learning_rate * update
        update, weight = torch.zeros_like(value), torch.zeros(len(value))
        for examples, one in sent:
            rows = one.rows[name]
            share = self._row_weights(examples, one.counts[name])
            update[rows] += share.unsqueeze(-1) * (one.arrays[name] - value[rows])
            weight[rows] += share
        return value + self.server_learning_rate * update / weight.clamp_min(1.0).unsqueeze(-1)

    def _row_weights(self, examples: int, counts: Tensor) -> Tensor:
        if self.weight == "uses":
            return counts.float()
        return torch.full(counts.shape, float(examples) if self.weight == "examples" else 1.0)

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
