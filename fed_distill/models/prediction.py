"""Predictions for encoded examples, in batches of similar length to reduce padding."""

from collections.abc import Callable

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded


def lengths(encoded: Encoded) -> Tensor:
    """Return the number of used entries of each example over all padded integer fields: int64 ``[examples]``."""
    fields = list(encoded.values())
    used = torch.zeros(len(fields[0]), dtype=torch.int64)
    for values in fields:
        if values.dim() == 2 and not values.is_floating_point():
            used += values.ne(0).sum(dim=1)
    return used


def predict(model: TextModel, encoded: Encoded, batch_size: int = 256, temperature: float = 1.0) -> Tensor:
    """Return class probabilities at ``temperature``, ``[examples, classes]``, on the CPU, in the order of ``encoded``.

    The model runs in evaluation mode on its device, without gradients; its mode is restored afterwards.
    """
    return by_batches(
        model, encoded, batch_size, lambda batch: torch.softmax(model(batch).logits.float() / temperature, dim=-1)
    )


def represent(model: TextModel, encoded: Encoded, batch_size: int = 256) -> Tensor:
    """Return the ``representation`` of each example, ``[examples, width]``, computed as in ``predict``."""
    return by_batches(model, encoded, batch_size, lambda batch: representation(model(batch, hidden=True)).float())


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


def by_batches(
    model: TextModel, encoded: Encoded, batch_size: int, compute: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """Return the rows that ``compute`` gives for collated batches, on the CPU, in the order of ``encoded``.

    The model runs as in ``predict``.
    """
    device = next(model.parameters()).device
    order = torch.argsort(lengths(encoded), stable=True)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = []
            for start in range(0, max(len(order), 1), batch_size):
                index = order[start : start + batch_size]
                batch = {name: values.to(device) for name, values in model.collate(encoded, index).items()}
                parts.append(compute(batch).cpu())
            sorted_rows = torch.cat(parts)
    finally:
        model.train(training)
    rows = torch.empty_like(sorted_rows)
    rows[order] = sorted_rows
    return rows
