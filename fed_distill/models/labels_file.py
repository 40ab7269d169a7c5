"""A teacher from a file: what a large language model or annotators said about texts or pairs, looked up.

The file may cover a part of the proxy set. It has no weights, no hidden states and nothing to train.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fed_distill.data.examples import Task
from fed_distill.data.label_table import read_labels
from fed_distill.errors import DataError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded


class LabelsFile(TextModel):
    """Looks up the class probabilities of texts or pairs in a file."""

    zero_shot = True
    trainable = False

    def __init__(
        self,
        task: Task,
        *,
        path: Path,
        columns: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        confidence: float | None = None,
        min_coverage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5,
    ) -> None:
        """path: a .csv, .tsv, .parquet, .jsonl or .json (one object per line) file.

        columns: column names by role: ``text``, ``pair`` and, if the file names classes, ``label``; without it, each
        class has a column of its probabilities. labels: class of a label, or of a column of probabilities.
        confidence: probability of a named class, by default 1; the rest is spread evenly over the others.
        min_coverage: least share of the proxy set that the file must cover.

        :raises ConfigError, DataError: as ``read_labels``
        """
        super().__init__()
        self.path, self.min_coverage = path, min_coverage
        self._table = read_labels(path, task, columns or {}, labels or {}, confidence)
        tiny = torch.finfo(torch.float32).tiny
        logits = torch.from_numpy(self._table.probabilities).float().clamp_min(tiny).log()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def parameter_count(self) -> int:
        """Return 0: a file has no weights."""
        return 0

    def covers(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Tensor:
        """Return which of ``n`` examples the file has, bool ``[n]``."""
        return torch.from_numpy(self._table.positions(texts, pairs) >= 0)

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Return the row of each example plus 1, int64 ``[n, 1]``; raise DataError if the file has no such row."""
        rows = self._table.positions(texts, pairs)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            at = absent[0]
            named = repr(texts[at]) if pairs is None else f"({texts[at]!r}, {pairs[at]!r})"
            raise DataError(f"{self.path} has no label for {len(absent):,} of {len(rows):,} examples, such as {named}")
        return {"rows": torch.from_numpy(rows + 1).unsqueeze(1)}

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Return the logarithms of the probabilities; there are no hidden states."""
        return Outputs(self.logits[batch["rows"].squeeze(1) - 1])
