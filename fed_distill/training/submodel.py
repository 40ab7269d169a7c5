"""A learner's submodel: the embedding rows that its batches touch, and nothing else of the tables.

Rows that no batch touches get no gradient, so leaving them out changes nothing but time, memory and bytes
(federated submodel learning, Niu et al., MobiCom 2020). Tables that share an encoded field must share all.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fed_distill.models.base import Encoded, TextModel
from fed_distill.transport.messages import PartialWeights, Weights


def row_counts(model: TextModel, parts: Sequence[Encoded]) -> dict[str, Tensor]:
    """How often the encoded examples use each row of each table, int64 ``[rows]``; padding is not counted."""
    counts: dict[str, Tensor] = {}
    for table, fields in model.tables.items():
        size = len(model.get_parameter(table))
        counts[table] = torch.zeros(size, dtype=torch.int64)
        for encoded in parts:
            for name in fields:
                if name in encoded:
                    counts[table] += torch.bincount(encoded[name].flatten().long(), minlength=size)
        counts[table][0] = 0
    return counts


def touched_rows(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sorted row numbers of each table that are used at all, padding row 0 always among them."""
    rows = {}
    for table, count in counts.items():
        used = count > 0
        used[0] = True
        rows[table] = used.nonzero().flatten()
    return rows


def renumber(model: TextModel, encoded: Encoded, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoded examples with row numbers turned into positions within ``rows``."""
    result = dict(encoded)
    for table, fields in model.tables.items():
        position = torch.zeros(len(model.get_parameter(table)), dtype=torch.int32)
        position[rows[table]] = torch.arange(len(rows[table]), dtype=torch.int32)
        for name in fields:
            if name in encoded:
                result[name] = position[encoded[name].long()]
    return result


def completed(partial: PartialWeights, base: Weights) -> dict[str, Tensor]:
    """The whole weights: ``base`` with the rows and arrays of ``partial`` put in."""
    whole: dict[str, Tensor] = {}
    for name, value in partial.arrays.items():
        if name in partial.rows:
            whole[name] = base[name].clone()
            whole[name][partial.rows[name]] = value
        else:
            whole[name] = value
    return whole
