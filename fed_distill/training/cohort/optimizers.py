"""Torch's own optimizer steps on stacked weights, each merchant with its own step count and learning rate.

Merchants that have taken as many steps at the same rate are one call of the fused kernel that the sequential trainer
uses, so both trainers do the same arithmetic.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fed_distill.config import TrainingConfig
from fed_distill.training.cohort.stacking import Stack

_BETAS, _EPS = (0.9, 0.999), 1e-8


class StackedOptimizer:
    """SGD with momentum or AdamW over a ``Stack``; moments lie as the weights do."""

    def __init__(self, stack: Stack, config: TrainingConfig, tables: Sequence[str]) -> None:
        """``tables``: weights without weight decay."""
        self._stack, self._config, self._tables = stack, config, set(tables)
        self._done = [0] * stack.size
        moments = 2 if config.optimizer == "adamw" else 1 if config.momentum else 0
        self._moments = [
            {name: torch.zeros_like(value) for name, value in stack.stacked.items()} for _ in range(moments)
        ]

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """One step of the first ``len(rates)`` merchants, each at its learning rate; weights without a gradient
        stay."""
        for first, last in self._alike(rates):
            for tables in (False, True):
                names = [name for name in gradients if (name in self._tables) == tables]
                if names:
                    decay = 0.0 if tables else self._config.weight_decay
                    self._update(names, gradients, first, last, rates[first], decay)
        for merchant in range(len(rates)):
            self._done[merchant] += 1

    def _alike(self, rates: Sequence[float]) -> Iterator[tuple[int, int]]:
        first = 0
        for _, run in groupby(zip(self._done, rates, strict=False)):
            last = first + len(list(run))
            yield first, last
            first = last

    def _update(
        self, names: Sequence[str], gradients: Mapping[str, Tensor], first: int, last: int, rate: float, decay: float
    ) -> None:
        spans = [self._stack.span(name, first, last) for name in names]
        weights = [self._stack.stacked[name][span] for name, span in zip(names, spans, strict=True)]
        slopes = [gradients[name][span].contiguous() for name, span in zip(names, spans, strict=True)]
        moments = [[kept[name][span] for name, span in zip(names, spans, strict=True)] for kept in self._moments]
        if self._config.optimizer == "sgd":
            sgd(
                weights,
                slopes,
                list(moments[0]) if moments else [None] * len(names),
                fused=True,
                weight_decay=decay,
                momentum=self._config.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            return
        adamw(
            weights,
            slopes,
            moments[0],
            moments[1],
            [],
            [torch.tensor(float(self._done[first]), device=weight.device) for weight in weights],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=_EPS,
            maximize=False,
        )


def clip(stack: Stack, gradients: Mapping[str, Tensor], merchants: int, largest: float) -> None:
    """Scale each merchant's gradient, in place, to an L2 norm of at most ``largest``; as
    ``torch.nn.utils.clip_grad_norm_`` does for one model."""
    squares = torch.zeros(merchants, device=stack.device)
    for name, gradient in gradients.items():
        if name in stack.tables:
            squares.index_add_(0, stack.owners(merchants), gradient.square().sum(dim=1))
        else:
            squares += gradient.square().flatten(1).sum(dim=1)
    factors = (largest / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for name, gradient in gradients.items():
        gradient.mul_(stack.spread(name, factors, gradient.dim()))
