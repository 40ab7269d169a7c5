"""Predictions for encoded examples, in batches of similar length to reduce padding, and once for texts that recur."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs, TextModel, trimmed
from fed_distill.text.encoded import Encoded


def lengths(encoded: Encoded) -> Tensor:
    """Return the number of used entries of each example over all padded integer fields: int64 ``[examples]``."""
    fields = list(encoded.values())
    used = torch.zeros(len(fields[0]), dtype=torch.int64)
    for values in fields:
        if values.dim() > 1 and not values.is_floating_point():
            used += values.ne(0).flatten(1).sum(dim=1)
    return used


@dataclass(frozen=True)
class Distinct:
    """Distinct rows of one encoded field, which occur in several examples.

    batches: the distinct rows ``[batch, length]``, by length. rows: their positions for the examples of each batch of
    ``PreparedExamples``, int64 ``[batch]``.
    """

    batches: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]


@dataclass(frozen=True)
class PreparedExamples:
    """Encoded examples, ready for prediction by every model that encodes alike.

    order: position of each example in the order of lengths, int64 ``[examples]``. batches: collated examples in that
    order, without the fields in ``distinct``. distinct: fields of which a model computes vectors apart from the
    others (``TextModel.vectors_of``).
    """

    order: Tensor
    batches: tuple[dict[str, Tensor], ...]
    distinct: Mapping[str, Distinct]


def prepare(model: TextModel, encoded: Encoded, batch_size: int = 256) -> PreparedExamples:
    """Sort and collate encoded examples for ``predict_prepared``; to predict once, use ``predict``."""
    order = torch.argsort(lengths(encoded), stable=True)
    apart = [name for name in model.vectors_of if name in encoded] if len(order) else []
    joint = {name: values for name, values in encoded.items() if name not in apart}
    parts = torch.split(order, batch_size)
    distinct = {name: _distinct(encoded[name], order, batch_size) for name in apart}
    return PreparedExamples(order, tuple(model.collate(joint, index) for index in parts), distinct)


def _distinct(values: Tensor, order: Tensor, batch_size: int) -> Distinct:
    rows, which = torch.unique(values, dim=0, return_inverse=True)
    by_length = torch.argsort(rows.ne(0).flatten(1).sum(dim=1), stable=True)
    place = torch.empty_like(by_length)
    place[by_length] = torch.arange(len(by_length))
    batches = tuple(trimmed(rows[index]) for index in torch.split(by_length, batch_size))
    return Distinct(batches, torch.split(place[which][order], batch_size))


def predict(model: TextModel, encoded: Encoded, batch_size: int = 256, temperature: float = 1.0) -> Tensor:
    """Return class probabilities at ``temperature``, ``[examples, classes]``, on the CPU, in the order of ``encoded``.

    The model runs in evaluation mode on its device, without gradients; its mode is restored afterwards.
    """
    return predict_prepared(model, prepare(model, encoded, batch_size), temperature)


def predict_prepared(model: TextModel, prepared: PreparedExamples, temperature: float = 1.0) -> Tensor:
    """Return what ``predict`` returns for the examples that were prepared."""
    return by_batches(model, prepared, lambda batch: torch.softmax(model(batch).logits.float() / temperature, dim=-1))


def represent(model: TextModel, encoded: Encoded, batch_size: int = 256) -> Tensor:
    """Return the ``representation`` of each example, ``[examples, width]``, computed as in ``predict``."""
    prepared = prepare(model, encoded, batch_size)
    return by_batches(model, prepared, lambda batch: representation(model(batch, hidden=True)).float())


def representation(outputs: Outputs) -> Tensor:
    """Return the mean of the last hidden state over positions with text, ``[batch, width]``.

    :raises TrainingError: the outputs have no hidden states
    """
    if not outputs.hidden:
        raise TrainingError(
            "the student has no hidden states and thus no representation: its forward must return `hidden`"
        )
    last = outputs.hidden[-1]
    if outputs.used is None:
        return last.mean(dim=1)
    used = outputs.used.unsqueeze(-1).to(last.dtype)
    return (last * used).sum(dim=1) / used.sum(dim=1).clamp_min(1.0)


def by_batches(model: TextModel, prepared: PreparedExamples, compute: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """Return the rows that ``compute`` gives for collated batches, on the CPU, in the order of the encoded examples.

    The fields ``model.vectors_of`` of a batch are vectors, which are computed once for each distinct text. The model
    runs as in ``predict``.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            vectors = {
                name: torch.cat([model.vectors(rows.to(device)) for rows in one.batches])
                for name, one in prepared.distinct.items()
            }
            parts = []
            for number, joint in enumerate(prepared.batches):
                batch = {name: values.to(device) for name, values in joint.items()}
                for name, one in prepared.distinct.items():
                    batch[name] = vectors[name][one.rows[number].to(device)]
                parts.append(compute(batch).cpu())
            sorted_rows = torch.cat(parts)
    finally:
        model.train(training)
    rows = torch.empty_like(sorted_rows)
    rows[prepared.order] = sorted_rows
    return rows
