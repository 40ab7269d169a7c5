"""What the tables of an experiment have in common, and the kinds of numbers in them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ClippingNorm = Annotated[float, Field(ge=1e-6, le=1e6)]
"""L2 norm to which something is clipped: float32 is exact enough there."""
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ConfigTable(BaseModel):
    """One table: unknown keys are mistakes, and what is read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
