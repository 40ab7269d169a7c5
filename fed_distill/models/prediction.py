"""What a model says of many encoded examples, in batches of similar length so that little padding is computed."""

from collections.abc import Callable

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.text.encoded import Encoded


def lengths(encoded: Encoded) -> Tensor:
    """Used entries of each example over all padded integer fields: int64 ``[examples]``."""
    fields = list(encoded.values())
    used = torch.zeros(len(fields[0]), dtype=torch.int64)
    for values in fields:
        if values.dim() == 2 and not values.is_floating_point():
            used += values.ne(0).sum(dim=1)
    return used


def predict(model: TextModel, encoded: Encoded, batch_size: int = 256, temperature: float = 1.0) -> Tensor:
    """Class probabilities at ``temperature``, ``[examples, classes]``, on the CPU, rows in the order of ``encoded``.

    The model runs in evaluation mode on the device that it is on, without gradients, and is left in the mode in
    which it came.
    """
    return _by_batches(
        model, encoded, batch_size, lambda batch: torch.softmax(model(batch).logits.float() / temperature, dim=-1)
    )


def represent(model: TextModel, encoded: Encoded, batch_size: int = 256) -> Tensor:
    """The ``representation`` of each example, ``[examples, width]``, computed as ``predict`` computes probabilities."""
    return _by_batches(model, encoded, batch_size, lambda batch: representation(model(batch, hidden=True)).float())


def representation(outputs: Outputs) -> Tensor:
    """One vector for each example, ``[batch, width]``: the mean of its last hidden state over the positions of text.

    Raise TrainingError if the model gave no hidden states.
    """
    if not outputs.hidden:
        raise TrainingError("a student without hidden states has no representation: its forward must give `hidden`")
    last = outputs.hidden[-1]
    if outputs.used is None:
        return last.mean(dim=1)
    used = outputs.used.unsqueeze(-1).to(last.dtype)
    return (last * used).sum(dim=1) / used.sum(dim=1).clamp_min(1.0)


def _by_batches(
    model: TextModel, encoded: Encoded, batch_size: int, compute: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
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
