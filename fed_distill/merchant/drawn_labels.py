"""A merchant's randomized labels, which it was charged for, as a method may send them."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.data.examples import Examples
from fed_distill.mechanisms.label import Draw
from fed_distill.payloads.released_labels import LONGEST, MOST_BYTES, ReleasedLabels, most_examples

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """The charged draws of a merchant.

    examples: its training examples. draws: rows of distinct texts among them, int64, and the draw of each.
    """

    examples: Examples
    draws: tuple[tuple[Tensor, Draw], ...]

    def released(self) -> ReleasedLabels:
        """Return the randomized labels with their texts, as they may be sent; log how many are too large to be."""
        rows = torch.cat([own for own, _ in self.draws])
        labels = torch.cat([draw.labels for _, draw in self.draws])
        outputs = torch.cat([draw.outputs for _, draw in self.draws])
        sent = ReleasedLabels.of(self.examples.take(rows.numpy()), labels, outputs)
        if len(sent.labels) < len(rows):
            _log.warning(
                "%d of %d randomized labels are not sent: an example may have %d bytes of text, and a message %d "
                "examples and %d bytes",
                len(rows) - len(sent.labels), len(rows), LONGEST, most_examples(outputs.shape[1]), MOST_BYTES,
            )  # fmt: skip
        return sent
