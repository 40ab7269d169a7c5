"""Precision of matrix products. Weights, gradients and optimizer states are float32 throughout."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fed_distill.config.tables import Precision
from fed_distill.errors import ConfigError
from fed_distill.models.base import TextModel


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """While entered, matrix products of a forward pass (and of its backward pass later) are computed in bfloat16 if
    that is the ``precision``.

    This is automatic mixed precision (Micikevicius et al., ICLR 2018) without a scale of the loss, as bfloat16 has the
    range of float32.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """While entered, products of float32 matrices may be computed in TF32 if that is the ``precision``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check_precision(model: TextModel, pair: bool, precision: Precision, device: torch.device, key: str) -> None:
    """Raise ConfigError if ``device`` cannot compute ``model`` in ``precision``: not every processor has every layer.

    :param pair: whether examples have two texts
    :param key: key of the experiment that holds the precision
    """
    if precision == "float32":
        return
    try:
        with torch.no_grad(), products(precision), autocast(precision, device):
            encoded = model.encode(["a"], ["b"] if pair else None)
            batch = {name: values.to(device) for name, values in encoded.items()}
            copy.deepcopy(model).to(device)(batch)
    except RuntimeError as error:
        raise ConfigError(
            f"{key} = {precision!r}: {model.kind} cannot be computed in it on this {device.type}; set 'float32' "
            f"({error})"
        ) from error
