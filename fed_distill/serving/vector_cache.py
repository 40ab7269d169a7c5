"""Vectors of the texts that were scored last, so that a known title costs a lookup instead of an encoding."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from fed_distill.serving.scorer import Vectors


class VectorCache:
    """Vectors by text, at most ``capacity``; the least recently used leaves first. For one thread."""

    def __init__(self, capacity: int, width: int) -> None:
        """width: number of columns of a vector."""
        self._vectors = np.empty((capacity, width), dtype=np.float32)  # pages are used when they are written
        self._rows: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._rows)

    def get(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Return vectors, float32 ``[n, width]``, and the positions of the texts that are not here, whose rows are
        undefined."""
        rows, missing = [], []
        for place, text in enumerate(texts):
            row = self._rows.get(text)
            if row is None:
                missing.append(place)
                row = 0
            else:
                self._rows.move_to_end(text)
            rows.append(row)
        return self._vectors[rows], missing

    def put(self, texts: Sequence[str], vectors: Sequence[Vectors]) -> None:
        """Keep the vectors, each ``[width]``, of distinct ``texts``; of more than fit, the last."""
        first = max(0, len(texts) - len(self._vectors))
        for text, vector in zip(texts[first:], vectors[first:], strict=True):
            row = self._rows.pop(text, None)
            if row is None:
                full = len(self._rows) == len(self._vectors)
                row = self._rows.popitem(last=False)[1] if full else len(self._rows)
            self._rows[text] = row
            self._vectors[row] = vector
