"""Values of a downlink: both ends reject those from which no student can be trained.

A single NaN in the global student makes every merchant's student NaN. Large values are rejected too, as weights could
overflow, and under differential privacy an overflow would depend on single examples.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fed_distill.errors import TrainingError
from fed_distill.models.weights import Weights
from fed_distill.transport.messages import Downlink

LARGEST_VALUE = 1e6
"""Maximum magnitude of a value in a downlink."""
_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types whose values need no check; other types, such as complex numbers, are rejected."""


def check_values(down: Downlink, starts: Mapping[str, Weights], where: str = "") -> None:
    """Check all values of a downlink.

    :param starts: initial weights by student name, which are sent beside the downlink
    :param where: federation and round, as the beginning of the message
    :raises TrainingError: values are not finite or above ``LARGEST_VALUE``; the message has ``where``, and the payload
        and the tensor's name, such as ``weights 'head.0.weight'``
    """
    part = _unusable_part(down, starts)
    if part is not None:
        raise TrainingError(
            f"{where}{part} of the downlink has values that are not finite, or above {LARGEST_VALUE:g}: the server "
            "must train at a lower learning rate ([training.server] learning_rate)"
        )


def _unusable_part(down: Downlink, starts: Mapping[str, Weights]) -> str | None:
    for payload in down.payloads:
        for tensors in payload.to_records().values():
            if (name := _unusable(tensors)) is not None:
                return f"{payload.name} {name!r}"
    for student, weights in starts.items():
        if (name := _unusable(weights)) is not None:
            return f"initial weights of student {student!r}, {name!r},"
    odd = next((name for name, value in down.scalars.items() if not abs(value) <= LARGEST_VALUE), None)
    return None if odd is None else f"number {odd!r}"


def _unusable(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, value in tensors.items() if not _usable(value)), None)


def _usable(value: Tensor) -> bool:
    if value.dtype not in _CHECKED:
        return value.dtype in _WHOLE
    if not value.numel():
        return True
    low, high = map(float, value.aminmax())  # NaN if any value is
    return low >= -LARGEST_VALUE and high <= LARGEST_VALUE
