"""Federated averaging: the mean of the merchants' updates, each merchant counting by its examples.

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

    weight: what a merchant counts for. ``examples``: its examples. ``examples-squared``: their square. Under
    example-level DP with steps of all examples the variance of the noise on a merchant's mean gradient falls with
    1/n^2, and this mean has the least of it; the price is that large merchants decide more (noise-aware aggregation,
    Malekmohammadi et al., "Noise-aware algorithm for heterogeneous differentially private federated learning", ICML
    2024). Not for steps of batches, whose noise does not fall with n.
    """

    weight: Literal["examples", "examples-squared"] = "examples"

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights; rows that a merchant did not send count as they were."""
        return mean_weights(current, uplinks, 2 if self.weight == "examples-squared" else 1)

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
