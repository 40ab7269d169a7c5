"""Federated averaging: the mean of the merchants' updates, weighted by their examples.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
algorithm 1. A running sum, so that memory does not grow with the number of merchants.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fed_distill.aggregation.running import mean_weights
from fed_distill.models.weights import Weights
from fed_distill.transport.messages import Uplink


@dataclass
class WeightedMean:
    """Mean weighted by examples (McMahan et al., AISTATS 2017).

    weight: a merchant's weight. ``examples``: its number of examples. ``examples-squared``: its square. With
    example-level DP and steps on all examples, the variance of the noise on a merchant's mean gradient decreases with
    1/n^2, and this mean minimises it; large merchants have more influence (noise-aware aggregation,
    Malekmohammadi et al., "Noise-aware algorithm for heterogeneous differentially private federated learning", ICML
    2024). It is not suitable for steps on batches, whose noise does not decrease with n.
    """

    weight: Literal["examples", "examples-squared"] = "examples"

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """Return the next global weights; rows that a merchant did not send count as unchanged."""
        return mean_weights(current, uplinks, 2 if self.weight == "examples-squared" else 1)

    def state(self) -> dict[str, Tensor]:
        """Return no state."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing, as there is no state."""
