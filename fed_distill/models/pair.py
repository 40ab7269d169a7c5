"""Two students as one model: a shared one and a merchant's own, on the same texts.

Mutual learning (Zhang et al., "Deep mutual learning", CVPR 2018) trains both on every batch, each with the other's
predictions. As one model with two parts, it can be trained by any trainer, with DP and submodels.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fed_distill.models.base import Outputs, TextModel
from fed_distill.models.building import rebuild
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.text.encoded import Encoded

SHARED, OWN = "shared.", "own."
"""Prefixes of the names of weights, tables and encoded fields of each student."""


class Pair(TextModel):
    """Two students ``shared`` and ``own`` of any kinds, which interact only through the loss."""

    def __init__(self, *, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """shared, own: ``kind`` and ``settings`` of each student."""
        super().__init__()
        self.shared = rebuild(shared["kind"], shared["settings"])
        self.own = rebuild(own["kind"], own["settings"])
        self.tables = {
            prefix + table: tuple(prefix + field for field in fields)
            for prefix, student in self._parts()
            for table, fields in student.tables.items()
        }

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Encode the texts for both students."""
        return {
            prefix + field: values
            for prefix, student in self._parts()
            for field, values in student.encode(texts, pairs).items()
        }

    def forward(self, batch: Encoded, hidden: bool = False) -> Outputs:
        """Classify a batch with both; the outputs are those of the own student, with the shared one's in ``shared``."""
        shared, own = (student(part_of(batch, prefix), hidden=hidden) for prefix, student in self._parts())
        return Outputs(own.logits, own.hidden, own.used, shared)

    def _parts(self) -> tuple[tuple[str, TextModel], tuple[str, TextModel]]:
        return (SHARED, self.shared), (OWN, self.own)


def plain_name(student: TextModel, name: str) -> str:
    """Return the name of a weight in its student, without the prefix of a pair."""
    return name.removeprefix(SHARED).removeprefix(OWN) if isinstance(student, Pair) else name


def pair_blueprint(shared: str, own: str) -> str:
    """Return the blueprint of a pair of students from their blueprints (kind and settings as JSON)."""
    settings = {"shared": json.loads(shared), "own": json.loads(own)}
    return json.dumps({"kind": f"{Pair.__module__}:{Pair.__name__}", "settings": settings}, sort_keys=True)


def paired(shared: Weights, own: Weights) -> dict[str, Tensor]:
    """Combine the weights of a pair."""
    return {SHARED + name: value for name, value in shared.items()} | {OWN + name: value for name, value in own.items()}


def part_of(values: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select one student's values (weights or encoded fields) of a pair, with their names in the student."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def shared_of(trained: PartialWeights) -> PartialWeights:
    """Select the shared student's part of a trained pair, the only part that is sent."""
    return PartialWeights(*(part_of(one, SHARED) for one in (trained.arrays, trained.rows, trained.counts)))
