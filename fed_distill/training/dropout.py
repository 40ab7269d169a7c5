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

    ``begin`` must be called before each forward pass. Inputs are ``[N, ...]``, an example each.
    """

    def __init__(self, keys: Sequence[bytes], device: torch.device | str = "cpu") -> None:
        """``keys``: 16 bytes or more of each merchant, of which 16 count."""
        super().__init__()
        words = [[int.from_bytes(one[at : at + 8], "big", signed=True) for at in (0, 8)] for one in keys]
        self._keys = torch.tensor(words, dtype=torch.int64, device=device)
        self._steps: Sequence[int] = ()
        self._owner: Tensor | None = None
        self._column: Tensor | None = None
        self._calls = 0

    def begin(self, steps: Sequence[int], owner: Tensor | None = None, column: Tensor | None = None) -> None:
        """A forward pass of the first ``len(steps)`` merchants begins, each at its own number of steps so far.

        owner and column: whose each example is, and its place in that merchant's batch, int64 ``[N]``; None for one
        merchant's whole batch.
        """
        self._steps, self._owner, self._column, self._calls = steps, owner, column, 0

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
        base = mixed(mixed(self._keys[: len(steps), 0] + steps * _ODD[0]) + call)
        count, device = len(input), input.device
        owner = torch.zeros(count, dtype=torch.int64, device=device) if self._owner is None else self._owner
        column = torch.arange(count, device=device) if self._column is None else self._column
        alone = [-1, *[1] * (input.dim() - 1)]
        code = (base[owner] + mixed(column * _ODD[0])).view(alone)
        for place, size in enumerate(input.shape[1:], start=1):
            along = torch.arange(size, device=device) * _ODD[place % len(_ODD)]
            code = code + mixed(along).view(-1, *[1] * (input.dim() - 1 - place))
        uniform = (mixed(mixed(code) + self._keys[owner, 1].view(alone)) >> 40) & 0xFFFFFF
        keep = uniform >= round(p * 2**24)
        dropped = torch.where(keep, input / ((1.0 - p) or 1.0), 0.0)
        return input.copy_(dropped) if inplace else dropped


def mixed(values: Tensor) -> Tensor:
    """The finalizer of splitmix64 (Steele et al., OOPSLA 2014) on int64 values, modulo 2^64."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * _MIX[0]
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * _MIX[1]
    return values ^ ((values >> 31) & 0x1FFFFFFFF)
