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

from fed_distill.config import TrainerConfig
from fed_distill.training.cohort.stacking import Stack

_BETAS, _EPS = (0.9, 0.999), 1e-8


class StackedOptimizer:
    """SGD with momentum or AdamW over a ``Stack``; moments lie as the weights do."""

    def __init__(self, stack: Stack, config: TrainerConfig, tables: Sequence[str]) -> None:
        """``tables``: weights without weight decay."""
        self._stack, self._config, self._tables = stack, config, set(tables)
        done = [0] * stack.size
        self._done = dict.fromkeys(stack.stacked, done)
        moments = 2 if config.optimizer == "adamw" else 1 if config.momentum else 0
        self._moments = [
            {name: torch.zeros_like(value) for name, value in stack.stacked.items()} for _ in range(moments)
        ]

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """One step of the first ``len(rates)`` merchants, each at its learning rate; weights without a gradient
        stay, and do not count it."""
        groups: dict[tuple[int, bool], list[str]] = {}
        for name in gradients:
            groups.setdefault((id(self._done[name]), name in self._tables), []).append(name)
        for (_, tables), names in groups.items():
            decay = 0.0 if tables else self._config.weight_decay
            for first, last in _alike(self._done[names[0]], rates):
                self._update(names, gradients, first, last, rates[first], decay)
        for name in self._done.keys() - gradients.keys():
            self._done[name] = list(self._done[name])  # counts on its own from now on
        for done in {id(self._done[name]): self._done[name] for name in gradients}.values():
            for merchant in range(len(rates)):
                done[merchant] += 1

    def _update(
        self, names: Sequence[str], gradients: Mapping[str, Tensor], first: int, last: int, rate: float, decay: float
    ) -> None:
        done = self._done[names[0]][first]
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
            [torch.tensor(float(done), device=weight.device) for weight in weights],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=_EPS,
            maximize=False,
        )


def _alike(done: Sequence[int], rates: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Spans of neighbours that have taken as many steps and have the same rate."""
    first = 0
    for _, run in groupby(zip(done, rates, strict=False)):
        last = first + len(list(run))
        yield first, last
        first = last


def clipped(stack: Stack, gradients: Mapping[str, Tensor], merchants: int, largest: float) -> dict[str, Tensor]:
    """Each merchant's gradient, scaled to an L2 norm of at most ``largest``; as ``torch.nn.utils.clip_grad_norm_``
    does for one model. Not in place: autograd gives two biases that are added one tensor for both."""
    squares = torch.zeros(merchants, device=stack.device)
    for name, gradient in gradients.items():
        if name in stack.tables:
            squares.index_add_(0, stack.owners(name, merchants), gradient.square().sum(dim=1))
        else:
            squares += gradient.square().flatten(1).sum(dim=1)
    factors = (largest / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    return {name: gradient * stack.spread(name, factors, gradient.dim()) for name, gradient in gradients.items()}
