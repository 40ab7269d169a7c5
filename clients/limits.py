"""A site's own rules for the privacy of its merchants, which win over whatever the server asks.

A TOML file of the site's: ``[default]`` for all of its merchants, ``[merchants."NAME"]`` for who wants other rules.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fed_distill.config import PositiveFloat
from fed_distill.errors import BudgetExceeded, ConfigError

Unit = Literal["none", "example", "merchant", "vote"]


class Limit(BaseModel):
    """What one merchant allows.

    max_epsilon: of all its releases together, for each privacy unit; None for no limit. max_delta: of any promise; None
    for what is below one over the number of members of the unit, which always holds. min_noise: least noise multiplier
    of a private step. units: what it takes part in; ``none`` is training without privacy.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_epsilon: PositiveFloat | None = None
    max_delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    min_noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    units: tuple[Unit, ...] = get_args(Unit)

    def check_unit(self, merchant: str, unit: str) -> None:
        """Raise BudgetExceeded unless the merchant takes part in what is protected by ``unit``."""
        if unit not in self.units:
            raise BudgetExceeded(
                f"merchant {merchant}: its limits allow units {', '.join(self.units) or 'of no kind'}, not {unit!r}"
            )

    def check_delta(self, merchant: str, delta: float, count: int) -> None:
        """Raise BudgetExceeded for a delta of ``count`` members of the unit that would make any epsilon look small."""
        most = 1.0 / max(count, 2) if self.max_delta is None else self.max_delta
        if delta > most:
            raise BudgetExceeded(
                f"merchant {merchant}: a delta of {delta:.3g} is above {most:.3g}, and promises too little"
            )

    def check_noise(self, merchant: str, noise_multiplier: float) -> None:
        """Raise BudgetExceeded if a private step has less noise than the merchant wants."""
        if noise_multiplier < self.min_noise:
            raise BudgetExceeded(
                f"merchant {merchant}: its limits ask for a noise multiplier of at least {self.min_noise:g}, "
                f"not {noise_multiplier:.4g}"
            )


class Limits(BaseModel):
    """The limits of a site's merchants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Limit = Limit()
    merchants: Mapping[str, Limit] = {}

    def of(self, merchant: str) -> Limit:
        """One merchant's limit."""
        return self.merchants.get(merchant, self.default)

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the file at ``path``, or allow everything if it is None; ConfigError naming the first wrong key."""
        if path is None:
            return cls()
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"cannot read the limits in {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise ConfigError(f"{path}: {where}: {problem['msg']}") from error
