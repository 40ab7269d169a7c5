"""A site's own rules, which win over whatever the server asks: what it takes part in, and its merchants' privacy.

A TOML file of the site's: ``[rules]`` for the site as a whole, ``[default]`` for the privacy of all of its merchants,
``[merchants."NAME"]`` for who wants other limits. What a file leaves out is closed: nothing unprotected is computed and
no test score is told unless the file names it, and a request may take no more work, time and memory than is usual.
A simulation, which has no file, allows everything (``OPEN``).
"""

from collections.abc import Iterable, Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fed_distill.config import PositiveFloat, PositiveInt
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import BudgetExceeded, ConfigError, NotAllowed, NotNow
from fed_distill.mechanisms import MECHANISMS
from fed_distill.mechanisms.lookup import protected_by_merchants
from fed_distill.privacy.accounting import DELTA


def _known(unit: str) -> str:
    if unit not in MECHANISMS and ":" not in unit:
        raise ValueError(f"Input should be {', '.join(map(repr, MECHANISMS))}, or the import path of another unit")
    return unit


Unit = Annotated[str, AfterValidator(_known)]
"""A privacy unit by name, or by import path one that the site has installed and its rules name under ``imports``."""
PROTECTED: tuple[Unit, ...] = protected_by_merchants()
"""What a merchant takes part in if its limits name no units: what it protects itself, trusting nobody."""
MAX_EPSILON = 8.0
"""What one of its examples may be exposed to if its limits do not say."""


class Limit(BaseModel):
    """What one merchant allows.

    max_epsilon: bound on what one of its examples is exposed to by all its releases together, of every privacy unit;
    None, in a simulation, for no limit. max_delta: of any promise; None, in a simulation, for what is below one over
    the number of members of the unit. min_noise: least noise multiplier of a private step. units: what it takes part
    in; ``none``, training without privacy, and those by which the server sees what is not noised yet, must be named;
    None, in a simulation, for everything.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_epsilon: PositiveFloat | None = MAX_EPSILON
    max_delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = DELTA
    min_noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    units: tuple[Unit, ...] | None = PROTECTED

    def allows(self, unit: str) -> bool:
        """Whether the merchant takes part in what is protected by ``unit``."""
        return self.units is None or unit in self.units

    def check_unit(self, merchant: str, unit: str) -> None:
        """Raise BudgetExceeded unless the merchant takes part in what is protected by ``unit``."""
        if not self.allows(unit):
            allowed = ", ".join(self.units or ()) or "of no kind"
            raise BudgetExceeded(f"merchant {merchant}: its limits allow units {allowed}, not {unit!r}")

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


class Rules(BaseModel):
    """What a site takes part in, and what a request may cost it. None: no bound, as in a simulation.

    methods: names as in ``federation.method``; None for any. max_rounds: rounds of one federation, as
    planned and as counted by the server, so that it keeps a server from asking too much and not from lying: that takes
    ``units`` without ``none``, and ``max_epsilon``. max_update_mib: size of one merchant's serialized uplink.
    max_model_mib: weights of one student that a request describes. max_steps: optimizer steps of one merchant in one
    round. max_seconds: time that one message takes. max_memory_gib: memory that the process answering it allocates.
    imports: import paths, ``package.module:Name``, that a request may name beside the built-in parts. hours: of
    the day in which it answers, in the site's local time, such as ``"22:00-06:00"``; None for always. scores: whether
    the server is told how many of a merchant's own test examples a student has right, a number without noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str, ...] | None = None
    max_rounds: PositiveInt | None = None
    max_update_mib: PositiveFloat | None = None
    max_model_mib: PositiveFloat | None = 256.0
    max_steps: PositiveInt | None = 100_000
    max_seconds: PositiveFloat | None = 3600.0
    max_memory_gib: PositiveFloat | None = 16.0
    imports: tuple[Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")], ...] = ()
    hours: str | None = None
    scores: bool = False

    @field_validator("hours")
    @classmethod
    def _two_times(cls, hours: str | None) -> str | None:
        if hours is not None:
            try:
                begin, end = _times(hours)
            except ValueError:
                raise ValueError(f'{hours!r} is not of the form "22:00-06:00"') from None
            if begin == end:
                raise ValueError(f"{hours!r} begins when it ends: leave hours out to allow all of the day")
        return hours

    def check(self, method: str | None, rounds: int, now: time) -> None:
        """Raise NotAllowed, naming the rule, for a request of one of ``rounds`` rounds of a federation; NotNow if it is
        the hour. ``method``: None for a request that is of no federation."""
        if self.methods is not None and method is not None and method not in self.methods:
            raise NotAllowed(f"rule methods: {', '.join(self.methods) or 'none'}, not {method!r}")
        if self.max_rounds is not None and rounds > self.max_rounds:
            raise NotAllowed(f"rule max_rounds: {self.max_rounds} in a federation, not {rounds}")
        if self.hours is not None:
            begin, end = _times(self.hours)
            inside = begin <= now < end if begin < end else now >= begin or now < end
            if not inside:
                raise NotNow(f"rule hours: {self.hours}, and it is {now:%H:%M} there")

    def check_scores(self) -> None:
        """Raise NotAllowed unless test scores may be told."""
        if not self.scores:
            raise NotAllowed("rule scores: how many test examples are right is not told; scores = true allows it")

    def check_models(self, sizes: Iterable[int]) -> None:
        """Raise NotAllowed if any student is too large; ``sizes``: bytes of each one's weights."""
        if self.max_model_mib is not None and (size := max(sizes, default=0)) > self.max_model_mib * 2**20:
            raise NotAllowed(
                f"rule max_model_mib: {self.max_model_mib:g} MiB, and a student has {size / 2**20:.3g} MiB"
            )

    def check_steps(self, steps: int) -> None:
        """Raise NotAllowed for a merchant's training of too many ``steps`` in one round."""
        if self.max_steps is not None and steps > self.max_steps:
            raise NotAllowed(f"rule max_steps: {self.max_steps} of one merchant in a round, not {steps}")

    def check_size(self, size: int) -> None:
        """Raise NotAllowed for an uplink of ``size`` bytes that is too large."""
        if self.max_update_mib is not None and size > self.max_update_mib * 2**20:
            raise NotAllowed(f"rule max_update_mib: {self.max_update_mib:g} MiB, and this is {size / 2**20:.3g} MiB")


class Limits(BaseModel):
    """A site's rules, and the limits of its merchants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: Rules = Rules()
    default: Limit = Limit()
    merchants: Mapping[str, Limit] = {}

    def of(self, merchant: str) -> Limit:
        """One merchant's limit: what its own table names, and else what ``[default]`` says."""
        own = self.merchants.get(merchant)
        if own is None:
            return self.default
        return self.default.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the file at ``path``; None, in a simulation, allows everything. ConfigError naming the first wrong
        key."""
        if path is None:
            return cls(rules=OPEN.rules, default=OPEN.default)
        try:
            return cls.model_validate(read_toml(path, "the limits in"))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error)}") from error


OPEN = Limits(
    rules=Rules(scores=True, max_model_mib=None, max_steps=None, max_seconds=None, max_memory_gib=None),
    default=Limit(max_epsilon=None, max_delta=None, units=None),
)
"""Allows everything: for a simulation, whose data are on one machine and in one hand."""


def _times(hours: str) -> tuple[time, time]:
    begin, end = hours.split("-")
    return time.fromisoformat(begin.strip()), time.fromisoformat(end.strip())
