"""Optimizers and learning-rate schedules by name, the same for every trainer.

Weight decay (decoupled in AdamW, part of the gradient in SGD) leaves embedding tables alone: a row that no example
touches must not move, or training only the touched rows would differ from training the whole table.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from fed_distill.config import OptimizerConfig
from fed_distill.models.weights import Weights


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], undecayed: Collection[str], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """An optimizer over the trainable ones of named ``parameters``; those named in ``undecayed``, embedding tables
    among them, get no weight decay. Its learning rate is set before each step (``Pace``)."""
    trainable = [(name, value) for name, value in parameters if value.requires_grad]
    groups = [
        {"params": [value for name, value in trainable if name not in undecayed], "weight_decay": config.weight_decay},
        {"params": [value for name, value in trainable if name in undecayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have the next step taken at learning rate ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
    """Scale the gradient of all ``parameters`` to the configured norm, if it is larger and there is one."""
    if config.clips:
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)


@torch.no_grad()
def correct(model: nn.Module, correction: Weights) -> None:
    """Add to the gradient of each weight its ``correction``; weights that have no gradient stay without."""
    for name, value in model.named_parameters():
        if value.grad is not None and name in correction:
            value.grad += correction[name]


@dataclass(frozen=True)
class Pace:
    """The learning rate of one training, and how it changes over that training's steps."""

    learning_rate: float
    schedule: str = "constant"
    warmup_share: float = 0.0

    @classmethod
    def of(cls, config: OptimizerConfig) -> Self:
        """As configured, for one whole training."""
        return cls(config.learning_rate, config.schedule, config.warmup_share)

    def after(self, done: float) -> float:
        """Learning rate when the share ``done`` in [0, 1] of the training has passed."""
        return self.learning_rate * schedule_factor(self.schedule, self.warmup_share, done)

    def at(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (0-based) of ``steps``: that of its middle."""
        return self.after((step + 0.5) / steps)


def schedule_factor(schedule: str, warmup_share: float, done: float) -> float:
    """Factor on the learning rate when the share ``done`` in [0, 1] of the time has passed.

    It rises linearly from 0 to 1 over ``warmup_share``, then stays (``constant``) or falls to 0 along a
    line (``linear``) or half a cosine wave (``cosine``; Loshchilov and Hutter 2017, eq. 5).
    """
    if done < warmup_share:
        return done / warmup_share
    left = 1.0 - (done - warmup_share) / (1.0 - warmup_share)
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * left))
    return 1.0
