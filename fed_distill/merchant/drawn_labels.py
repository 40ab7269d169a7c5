"""A merchant's randomized labels, which it was charged for, as a method may send them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.data.examples import Examples, Task
from fed_distill.mechanisms.label import Draw, check_public_texts
from fed_distill.payloads.released_labels import MOST_EXAMPLES, ReleasedLabels


@dataclass(frozen=True)
class Drawn:
    """The charged draws of a merchant.

    examples: its training examples. draws: rows of distinct texts among them, int64, and the draw of each.
    """

    examples: Examples
    task: Task
    draws: tuple[tuple[Tensor, Draw], ...]

    def released(self) -> ReleasedLabels:
        """Return the randomized labels with their texts, as they may be sent.

        :raises ConfigError: the task's texts are of customers, so that they cannot be public
        """
        check_public_texts(self.task)
        rows = torch.cat([own for own, _ in self.draws])
        labels = torch.cat([draw.labels for _, draw in self.draws])
        outputs = torch.cat([draw.outputs for _, draw in self.draws])
        sent = ReleasedLabels.of(self.examples.take(rows.numpy()), labels, outputs)
        return sent.at_most(MOST_EXAMPLES)
