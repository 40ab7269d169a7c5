"""Federated submodel averaging: an embedding row is averaged over the merchants that have the feature.

Ding et al., "Federated submodel optimization for hot and cold data features", NeurIPS 2022: a plain mean
divides a row's update by all merchants, also by those that never saw the feature, so rare features hardly
move. Dividing by the merchants that touched the row removes that bias.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fed_distill.aggregation.running import RunningUpdate
from fed_distill.config import PositiveFloat
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import Weights
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

USES_PER_EXAMPLE = 4
"""What a merchant counts for in a row at most, for each of its training examples.

How often its examples use a row is a merchant's own word and has no exact bound; its examples, and its uses of all rows
together, are cut to what other merchants' let them be before they come here (``coordinator.counts``). In a pair each
text uses a feature once or twice, and proxy examples count too: no merchant of the experiments on marketplace and
PriceRunner reaches 3 uses an example, so that the limit only holds back who overstates.
"""


@dataclass
class FedSubAvg:
    """Mean update of what each merchant touched; weights outside the tables are averaged by examples.

    weight: what a merchant counts for in a row's mean. ``uses``: how often its examples use the row, so that who
    knows a feature best has most say, up to ``USES_PER_EXAMPLE`` times its examples; ``examples``: all of its examples;
    ``merchants``: each the same, as in the paper. server_learning_rate: factor on the averaged update; 1 takes the
    average itself. A running sum: memory does not grow with the number of merchants.
    """

    weight: Literal["uses", "examples", "merchants"] = "uses"
    server_learning_rate: PositiveFloat = 1.0

    def average(self, current: Weights, uplinks: Iterable[Uplink]) -> Weights:
        """The next global weights; rows that nobody sent stay as they are."""
        update, examples = RunningUpdate(current), 0
        row_weights: dict[str, Tensor] = {}
        for uplink in uplinks:
            sent = uplink.get(StudentUpdate)
            if sent is None:
                continue
            examples += uplink.examples
            for name in update.names:
                if name not in sent.rows:
                    update.add(name, sent, uplink.examples)
                    continue
                share = self._row_weights(uplink.examples, sent.counts[name])
                total = row_weights.setdefault(name, torch.zeros(len(current[name]), dtype=torch.float64))
                total.index_add_(0, sent.rows[name], share)
                update.add(name, sent, share)
        if not examples:
            raise UplinkRejected("no merchant sent an update that could be merged")
        rate = self.server_learning_rate
        return {name: update.moved(name, row_weights.get(name, examples), rate) for name in current}

    def _row_weights(self, examples: int, counts: Tensor) -> Tensor:
        if self.weight == "uses":
            return counts.double().clamp_max(float(USES_PER_EXAMPLE * examples))
        return torch.full(counts.shape, float(examples) if self.weight == "examples" else 1.0, dtype=torch.float64)

    def state(self) -> dict[str, Tensor]:
        """Nothing is kept between rounds."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to go on from."""
