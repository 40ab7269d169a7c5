"""A learner's submodel: only the embedding rows that its batches use.

Rows that no batch uses have no gradient, so that omitting them changes only time, memory and bytes (federated submodel
learning, Niu et al., MobiCom 2020). Tables that share an encoded field must share all.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fed_distill.errors import ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.text.encoded import Encoded


@dataclass(frozen=True)
class Submodel:
    """Which rows of the tables a learner reads, trains and sends; of a student without tables there are none.

    rows: by table, the sorted int64 row numbers that it reads, padding row 0 always among them. trained: by table,
    bool ``[rows]``, those of ``rows`` that it may change. counts: by table, int64 ``[rows]``, how often its examples
    use each row. whole: it has all rows, and sends its tables as whole weights.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Mapping[str, Tensor] = field(default_factory=dict)
    """By encoded field, int32 ``[rows of the whole table]``: where in ``rows`` a row is, 0 if it is not there."""
    whole: bool = False

    def renumber(self, encoded: Encoded) -> dict[str, Tensor]:
        """The encoded examples with row numbers turned into positions within ``rows``."""
        return {
            name: self.positions[name][values.long()] if name in self.positions else values
            for name, values in encoded.items()
        }

    def sent(self, arrays: Weights) -> PartialWeights:
        """What leaves a learner of its trained ``arrays``: whole weights, and of each table the rows it may change."""
        if self.whole:
            return PartialWeights(arrays)
        kept = {table: mask.clone() for table, mask in self.trained.items()}
        for mask in kept.values():
            mask[0] = True
        return PartialWeights(
            {name: value[kept[name]] if name in kept else value for name, value in arrays.items()},
            {table: self.rows[table][mask] for table, mask in kept.items()},
            {table: self.counts[table][mask] for table, mask in kept.items()},
        )


def trained_tables(model: TextModel) -> dict[str, tuple[str, ...]]:
    """The model's tables without those that it freezes: of these all rows are read, none is trained or sent.

    Raise ModelError for tables with a common field of which only some are frozen: one row number cannot mean both.
    """
    trained = {table: fields for table, fields in model.tables.items() if model.get_parameter(table).requires_grad}
    fields_of_trained = {name for fields in trained.values() for name in fields}
    for table in model.tables.keys() - trained.keys():
        if fields_of_trained.intersection(model.tables[table]):
            raise ModelError(f"table {table!r} is frozen and shares a field with one that is not: freeze both or none")
    return trained


def whole_model(model: TextModel) -> Submodel:
    """No submodel: every row of every table is read, trained (but padding) and sent."""
    tables = trained_tables(model)
    sizes = {table: len(model.get_parameter(table)) for table in tables}
    return Submodel(
        {table: torch.arange(size) for table, size in sizes.items()},
        {table: torch.arange(size) > 0 for table, size in sizes.items()},
        {table: torch.zeros(size, dtype=torch.int64) for table, size in sizes.items()},
        {name: torch.arange(sizes[table], dtype=torch.int32) for table, fields in tables.items() for name in fields},
        whole=True,
    )


def submodel_of(
    model: TextModel, read: Iterable[Encoded], public: Encoded | None = None, most: int | None = None
) -> Submodel:
    """The submodel of a learner whose batches hold the examples ``read``.

    With ``public`` (the proxy set, under DP) it also has every row that these examples use and trains only those:
    which rows its own examples touch is private, so neither the rows that it sends nor their counts may depend on it.
    ``most``: only the so many rows of a table that the public examples use most are trained (the first of equals).
    """
    counts = row_counts(model, read)
    public_counts = None if public is None else row_counts(model, [public])
    rows: dict[str, Tensor] = {}
    trained: dict[str, Tensor] = {}
    sent_counts: dict[str, Tensor] = {}
    positions: dict[str, Tensor] = {}
    for table, fields in trained_tables(model).items():
        known = counts[table] if public_counts is None else most_used(public_counts[table], most)
        used = (counts[table] > 0) | (known > 0)
        used[0] = True
        rows[table] = used.nonzero().flatten()
        sent_counts[table] = known[rows[table]]
        trained[table] = sent_counts[table] > 0
        position = torch.zeros(len(used), dtype=torch.int32)
        position[rows[table]] = torch.arange(len(rows[table]), dtype=torch.int32)
        positions |= dict.fromkeys(fields, position)
    return Submodel(rows, trained, sent_counts, positions)


def most_used(counts: Tensor, most: int | None) -> Tensor:
    """``counts`` ``[rows]`` of the ``most`` largest, 0 of the others; of equals the first rows are taken."""
    if most is None:
        return counts
    kept = torch.zeros_like(counts)
    chosen = counts.argsort(descending=True, stable=True)[:most]
    kept[chosen] = counts[chosen]
    return kept


def row_counts(model: TextModel, parts: Iterable[Encoded]) -> dict[str, Tensor]:
    """How often the encoded examples use each row of each table, int64 ``[rows]``; padding is not counted."""
    counts = {table: torch.zeros(len(model.get_parameter(table)), dtype=torch.int64) for table in model.tables}
    for encoded in parts:
        of_field = {
            name: torch.bincount(encoded[name].flatten(), minlength=len(model.get_parameter(table)))
            for table, fields in model.tables.items()
            for name in fields
            if name in encoded
        }
        for table, fields in model.tables.items():
            for name in fields:
                if name in of_field:
                    counts[table] += of_field[name]
    for count in counts.values():
        count[0] = 0
    return counts


def completed(partial: PartialWeights, base: Weights) -> dict[str, Tensor]:
    """The whole weights: ``base`` with the rows and arrays of ``partial`` put in."""
    whole = dict(base)
    for name, value in partial.arrays.items():
        if name in partial.rows:
            whole[name] = base[name].clone()
            whole[name][partial.rows[name]] = value
        else:
            whole[name] = value
    return whole
