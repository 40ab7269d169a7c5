"""Configuration of an optimizer, and changes to it for another training."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import ConfigTable, PositiveFloat, Share

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]
WeightDecay = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
GradientNorm = Annotated[float, Field(gt=0.0)]


class OptimizerConfig(ConfigTable):
    """Optimizer, learning rate schedule and gradient clipping of one training."""

    optimizer: Optimizer = Field("adamw", description="adamw, or sgd with or without momentum")
    learning_rate: PositiveFloat = Field(3e-3, description="peak learning rate, after warm-up")
    schedule: Schedule = Field(
        "linear",
        description="constant, or linear or cosine decay of the rate to 0: over the steps of a training, or over the "
        "rounds of a federation",
    )
    warmup_share: Share = Field(0.0, description="share of the schedule in which the rate rises from 0")
    momentum: Share = Field(0.0, description="momentum of sgd; adamw does not use it")
    weight_decay: WeightDecay = Field(
        0.0, description="decoupled for adamw, part of the gradient for sgd; not applied to embedding tables"
    )
    clip_norm: GradientNorm = Field(math.inf, description="maximum L2 norm of a gradient; inf: no clipping")

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Self:
        _check_momentum(self.optimizer, self.momentum)
        return self

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped."""
        return self.clip_norm < math.inf

    def at_constant(self, learning_rate: float) -> Self:
        """Return a copy with a constant ``learning_rate``."""
        return self.model_copy(update={"learning_rate": learning_rate, "schedule": "constant", "warmup_share": 0.0})


class OptimizerChanges(ConfigTable):
    """Differences from the optimizer of another training; keys that are not set are as there."""

    optimizer: Optimizer | None = Field(None, description="adamw or sgd; only sgd inherits momentum")
    learning_rate: PositiveFloat | None = Field(None, description="peak learning rate, after warm-up")
    schedule: Schedule | None = Field(None, description="constant, linear or cosine")
    warmup_share: Share | None = Field(None, description="share of the schedule in which the rate rises from 0")
    momentum: Share | None = Field(None, description="momentum of sgd")
    weight_decay: WeightDecay | None = Field(None, description="not applied to embedding tables")
    clip_norm: GradientNorm | None = Field(None, description="maximum L2 norm of a gradient; inf: no clipping")

    def over(self, base: OptimizerConfig) -> OptimizerConfig:
        """Return ``base`` with these changes.

        :raises ValueError: momentum without sgd
        """
        own = {name: getattr(self, name) for name in OptimizerChanges.model_fields}
        changes = {name: value for name, value in own.items() if value is not None}
        kept = {name: getattr(base, name) for name in OptimizerConfig.model_fields}
        if changes.get("optimizer", base.optimizer) != "sgd":
            kept["momentum"] = 0.0
        merged = kept | changes
        _check_momentum(merged["optimizer"], merged["momentum"])
        return OptimizerConfig(**merged)


def _check_momentum(optimizer: str, momentum: float) -> None:
    if momentum and optimizer != "sgd":
        raise ValueError(f"momentum requires optimizer sgd, not {optimizer}: remove momentum, or set optimizer = 'sgd'")
