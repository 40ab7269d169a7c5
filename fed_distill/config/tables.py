"""Base class of an experiment's tables, and types of their values."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _at_home(path: Path) -> Path:
    """Expand a leading ``~``, which a shell does not expand in ``--set KEY=~/...``."""
    try:
        return path.expanduser()
    except RuntimeError:  # no such user
        return path


Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Precision = Literal["float32", "tf32", "bfloat16"]
"""Precision of matrix products; tf32: that of float32 matrices on devices that have TF32, float32 on others."""
LARGEST = 2**62
"""Maximum of whole numbers: they fit in the 64-bit integers of messages, also after additions to a seed."""
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=LARGEST)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
ClippingNorm = Annotated[float, Field(ge=1e-6, le=1e6)]
NoiseStd = Annotated[float, Field(gt=0.0, le=1e9)]
"""L2 norm for clipping, in the range where float32 is sufficiently exact."""
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Place = Annotated[Path, AfterValidator(_at_home)]
"""A file or folder; a relative one is in the working folder."""


class ConfigTable(BaseModel):
    """One table: it rejects unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        """Reject U+0000 in any text, also of options: no path or name can have it, and some libraries cut it there."""
        found = _with_null(values)
        if found is not None:
            raise ValueError(f"{found} has the character U+0000: remove it")
        return values

    def _refuse_idle(self, keys: Iterable[str], reason: str) -> None:
        """Raise ValueError for the first of ``keys`` that is not at its default, since none has an effect."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with {reason}: remove it")


def _with_null(value: Any) -> str | None:
    """Return the dotted key of the first text with U+0000 in the content of a table, or None."""
    if isinstance(value, str | Path):
        return "" if "\0" in str(value) else None
    if isinstance(value, Mapping):
        children: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value, start=1)
    else:
        return None
    for key, child in children:
        if "\0" in str(key):
            return ascii(key)
        if (inner := _with_null(child)) is not None:
            return f"{key}.{inner}" if inner else str(key)
    return None
