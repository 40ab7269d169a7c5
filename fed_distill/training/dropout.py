"""Dropout whose masks come from (merchant, step, place of the example), the same in whatever batch an example is.

Torch draws masks from a stream, so they would depend on padding and on who else is in a batch. Here a mask is a hash of
the entry's coordinates (a counter-based generator; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011), so that a cohort draws the same masks as its merchants one after another, on every device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ODD = (
    -7046029254386353131,
    -4658895280553007687,
    -7723592293110705685,
    -4942790177534073029,
    5871781006564002453,
    -2643881736870682267,
)
"""Odd 64-bit constants (splitmix64's and murmur's), one for each dimension of what is dropped."""
_CALL = -4417276706812531889
_MIX = (-4658895280553007687, -7723592293110705685)


class SeededDropout(TorchFunctionMode):
    """While it is entered, ``torch.nn.functional.dropout`` takes its masks from here.

    ``begin`` must be called before each forward pass. Inputs are ``[merchants * B, ...]``, merchants after one another.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        """``seeds``: one of each merchant, below 2^63."""
        super().__init__()
        self._seeds = torch.tensor(list(seeds), dtype=torch.int64, device=device)
        self._steps: Sequence[int] = ()
        self._first = self._calls = 0

    def begin(self, steps: Sequence[int], first: int = 0) -> None:
        """A forward pass of the first ``len(steps)`` merchants begins, each at its own number of steps so far; of each
        batch it begins at example ``first``."""
        self._steps, self._first, self._calls = steps, first, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Catch dropout; run everything else as it is."""
        if func is F.dropout:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        self._calls += 1
        if not training or p == 0.0:
            return input
        steps = torch.tensor(self._steps, dtype=torch.int64, device=input.device)
        call = torch.tensor(self._calls, device=input.device) * _CALL
        base = mixed(mixed(self._seeds[: len(steps)] + steps * _ODD[0]) + call)
        shape = (len(steps), -1, *input.shape[1:])
        grouped = input.reshape(shape)
        code = base.view(-1, *[1] * (grouped.dim() - 1))
        for place, size in enumerate(grouped.shape[1:]):
            along = torch.arange(size, dtype=torch.int64, device=input.device) + (0 if place else self._first)
            along = along * _ODD[place % len(_ODD)]
            code = code + mixed(along).view(-1, *[1] * (grouped.dim() - 2 - place))
        uniform = (mixed(code) >> 40) & 0xFFFFFF
        keep = uniform >= round(p * 2**24)
        dropped = torch.where(keep, grouped / (1.0 - p), 0.0).view(input.shape)
        return input.copy_(dropped) if inplace else dropped


def mixed(values: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al., OOPSLA 2014) on int64 values, modulo 2^64."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * _MIX[0]
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * _MIX[1]
    return values ^ ((values >> 31) & 0x1FFFFFFFF)
