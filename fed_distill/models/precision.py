"""Precision of matrix products. Weights, gradients and optimizer states are float32 throughout."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fed_distill.config.tables import Precision


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
