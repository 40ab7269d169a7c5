"""The optimizer of one training, and what another training changes of it."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import ConfigTable, PositiveFloat, Share

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "linear", "cosine"]
WeightDecay = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
GradientNorm = Annotated[float, Field(gt=0.0)]


class OptimizerConfig(ConfigTable):
    """How the weights follow the gradients."""

    optimizer: Optimizer = Field("adamw", description="AdamW, or SGD with or without momentum")
    learning_rate: PositiveFloat = Field(3e-3, description="the highest, after warm-up")
    schedule: Schedule = Field(
        "linear",
        description="how the rate falls to 0: over the steps of one training, or over the rounds where a training is "
        "of one round",
    )
    warmup_share: Share = Field(0.0, description="share of that time in which the rate rises from 0 first")
    momentum: Share = Field(0.0, description="of optimizer sgd; adamw has its own")
    weight_decay: WeightDecay = Field(
        0.0, description="of adamw decoupled, of sgd part of the gradient; not applied to embedding tables"
    )
    clip_norm: GradientNorm = Field(math.inf, description="largest L2 norm of a gradient; inf for no clipping")

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Self:
        _check_momentum(self.optimizer, self.momentum)
        return self

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped."""
        return self.clip_norm < math.inf

    def at_constant(self, learning_rate: float) -> Self:
        """The same at one ``learning_rate`` for all steps."""
        return self.model_copy(update={"learning_rate": learning_rate, "schedule": "constant", "warmup_share": 0.0})


class OptimizerChanges(ConfigTable):
    """What differs from the optimizer of another training; a key that is not given is as there."""

    optimizer: Optimizer | None = Field(None, description="adamw or sgd; momentum is taken over by sgd alone")
    learning_rate: PositiveFloat | None = Field(None, description="the highest, after warm-up")
    schedule: Schedule | None = Field(None, description="constant, linear or cosine")
    warmup_share: Share | None = Field(None, description="share of the time in which the rate rises from 0 first")
    momentum: Share | None = Field(None, description="of optimizer sgd")
    weight_decay: WeightDecay | None = Field(None, description="not applied to embedding tables")
    clip_norm: GradientNorm | None = Field(None, description="largest L2 norm of a gradient; inf for no clipping")

    def over(self, base: OptimizerConfig) -> OptimizerConfig:
        """``base`` with these changes. ValueError for momentum without sgd."""
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
        raise ValueError(f"momentum is for optimizer sgd, {optimizer} has its own: drop momentum or take sgd")
