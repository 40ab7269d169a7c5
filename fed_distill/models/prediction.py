"""Class probabilities of many encoded examples, in batches of similar length so that little padding is computed."""

import torch
from torch import Tensor

from fed_distill.models.base import Encoded, TextModel


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
                parts.append(torch.softmax(model(batch).logits.float() / temperature, dim=-1).cpu())
            sorted_rows = torch.cat(parts)
    finally:
        model.train(training)
    probabilities = torch.empty_like(sorted_rows)
    probabilities[order] = sorted_rows
    return probabilities
