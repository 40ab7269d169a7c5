"""What the tables of an experiment have in common, and the kinds of numbers in them."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _at_home(path: Path) -> Path:
    """``path`` with a leading ``~`` read as in a shell, which leaves it alone in ``--set KEY=~/...``."""
    try:
        return path.expanduser()
    except RuntimeError:  # of a user that there is not
        return path


Share = Annotated[float, Field(ge=0.0, lt=1.0)]
LARGEST = 2**62
"""Of whole numbers that travel in messages, whose integers have 64 bits: a seed is added to, and still fits."""
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ClippingNorm = Annotated[float, Field(ge=1e-6, le=1e6)]
"""L2 norm to which something is clipped: float32 is exact enough there."""
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Place = Annotated[Path, AfterValidator(_at_home)]
"""A file or folder, from the working folder on if it is relative."""


class ConfigTable(BaseModel):
    """One table: unknown keys are mistakes, and what is read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants")
