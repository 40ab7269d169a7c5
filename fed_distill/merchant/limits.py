"""A site's own limits, which override every request of the server.

A TOML file of the site: ``[rules]`` for the whole site, ``[default]`` for the privacy of all its merchants,
``[merchants."NAME"]`` for the limits of one merchant. Defaults are restrictive: unprotected training and test scores
must be allowed explicitly, like texts of training examples, and work, time and memory of a request are bounded. A
simulation has no file and allows everything (``OPEN``).
"""

from collections.abc import Iterable, Mapping
from datetime import time
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from fed_distill.config import PositiveFloat, PositiveInt
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.data.examples import Task
from fed_distill.errors import BudgetExceeded, ConfigError, NotAllowed, NotNow
from fed_distill.mechanisms import MECHANISMS
from fed_distill.mechanisms.lookup import protected_by_merchants
from fed_distill.privacy.accounting import DELTA


def _known(unit: str) -> str:
    if unit not in MECHANISMS and ":" not in unit:
        raise ValueError(f"the unit must be {', '.join(map(repr, MECHANISMS))}, or the import path of another unit")
    return unit


Unit = Annotated[str, AfterValidator(_known)]
"""A privacy unit by name, or by import path if the site has installed it and lists it in ``imports``."""
PROTECTED: tuple[Unit, ...] = protected_by_merchants()
"""Default units of a merchant: those with noise at the merchant, which require no trust in the server."""
MAX_EPSILON = 8.0
"""Default maximum epsilon of an example over all releases."""


class Limit(BaseModel):
    """Limits of one merchant. ``None`` is for simulations only: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_epsilon: PositiveFloat | None = Field(
        MAX_EPSILON, description="maximum epsilon of one example over all releases of all privacy units"
    )
    max_delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        DELTA, description="maximum delta of a guarantee; none: any below one over the number of members of the unit"
    )
    min_noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.0, description="minimum noise multiplier of a private step"
    )
    units: tuple[Unit, ...] | None = Field(
        PROTECTED,
        description="allowed privacy units; `none` (training without privacy) and units with noise at the server must "
        "be listed",
    )

    def allows(self, unit: str) -> bool:
        """Whether the merchant participates in federations of privacy ``unit``."""
        return self.units is None or unit in self.units

    def check_unit(self, merchant: str, unit: str) -> None:
        """Raise BudgetExceeded unless the merchant participates in federations of privacy ``unit``."""
        if not self.allows(unit):
            allowed = ", ".join(self.units or ()) or "(none)"
            raise BudgetExceeded(f"merchant {merchant}: its limits allow units {allowed}, not {unit!r}")

    def check_delta(self, merchant: str, delta: float, count: int) -> None:
        """Raise BudgetExceeded for a delta that is too large for ``count`` members of the unit."""
        most = 1.0 / max(count, 2) if self.max_delta is None else self.max_delta
        if delta > most:
            raise BudgetExceeded(
                f"merchant {merchant}: its limits allow a delta of at most {most:.3g}, not {delta:.3g}"
            )

    def check_noise(self, merchant: str, noise_multiplier: float) -> None:
        """Raise BudgetExceeded if a private step has less noise than the merchant requires."""
        if noise_multiplier < self.min_noise:
            raise BudgetExceeded(
                f"merchant {merchant}: its limits require a noise multiplier of at least {self.min_noise:g}, "
                f"not {noise_multiplier:.4g}"
            )


class Rules(BaseModel):
    """Rules of a site, and bounds on the cost of a request. ``None`` is no bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str, ...] | None = Field(
        None, description="allowed methods, named as in `federation.method`; none: any"
    )
    max_rounds: PositiveInt | None = Field(
        None,
        description="maximum number of rounds of one federation, as planned and counted by the server; against a "
        "server that misreports them, set `max_epsilon` and `units` without `none`",
    )
    max_update_mib: PositiveFloat | None = Field(None, description="maximum MiB of one merchant's serialized uplink")
    max_model_mib: PositiveFloat | None = Field(256.0, description="maximum MiB of the weights of one student")
    max_steps: PositiveInt | None = Field(
        100_000, description="maximum number of optimizer steps of one merchant in one round"
    )
    max_seconds: PositiveFloat | None = Field(3600.0, description="maximum seconds for one message")
    max_memory_gib: PositiveFloat | None = Field(
        16.0, description="maximum GiB of memory of the process that handles a message"
    )
    imports: tuple[Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")], ...] = Field(
        (), description="import paths, `package.module:Name`, that a request may use beside the built-in parts"
    )
    hours: str | None = Field(
        None,
        description="hours of the day in which the site participates, in its local time, such as `22:00-06:00`; none: "
        "always",
    )
    scores: bool = Field(
        False, description="the server gets the number of a merchant's correct test examples, which has no noise"
    )
    texts: bool = Field(
        False,
        description="the server gets the texts of a merchant's labelled training examples, with randomized labels "
        "(method `lp-mst`): only if they are public, and so is that the merchant has them",
    )

    @field_validator("hours")
    @classmethod
    def _two_times(cls, hours: str | None) -> str | None:
        if hours is not None:
            try:
                begin, end = _times(hours)
            except ValueError:
                raise ValueError(f'{hours!r} does not have the form "22:00-06:00"') from None
            if begin.tzinfo or end.tzinfo:
                raise ValueError(f"{hours!r} names a time zone: hours are the site's local time, without one")
            if begin == end:
                raise ValueError(f"{hours!r} begins when it ends: remove hours to allow the whole day")
        return hours

    def check(self, method: str | None, rounds: int, now: time) -> None:
        """Check the rules for a request of a federation with ``rounds`` rounds.

        :param method: the federation's method; None for a request without a federation
        :raises NotAllowed: a rule forbids it; the message has its name
        :raises NotNow: it is outside of the site's hours
        """
        if self.methods is not None and method is not None and method not in self.methods:
            raise NotAllowed(f"rule methods: {', '.join(self.methods) or 'none'}, not {method!r}")
        if self.max_rounds is not None and rounds > self.max_rounds:
            raise NotAllowed(f"rule max_rounds: at most {self.max_rounds} in a federation, not {rounds}")
        if self.hours is not None:
            begin, end = _times(self.hours)
            inside = begin <= now < end if begin < end else now >= begin or now < end
            if not inside:
                raise NotNow(f"rule hours: {self.hours}, and the site's time is {now:%H:%M}")

    def check_scores(self) -> None:
        """Raise NotAllowed unless test scores may be reported."""
        if not self.scores:
            raise NotAllowed("rule scores: test scores are not reported; scores = true allows them")

    def check_texts(self, task: Task) -> None:
        """Raise NotAllowed unless texts of labelled examples of a task may be sent."""
        if not self.texts:
            raise NotAllowed("rule texts: texts of training examples are not sent; texts = true allows it")
        if task.of_titles:
            raise NotAllowed(f"rule texts: texts of task {task.name!r} are histories of customers, which are not sent")

    def check_models(self, sizes: Iterable[int]) -> None:
        """Raise NotAllowed if any student is too large; ``sizes``: bytes of the weights of each."""
        if self.max_model_mib is not None and (size := max(sizes, default=0)) > self.max_model_mib * 2**20:
            raise NotAllowed(
                f"rule max_model_mib: at most {self.max_model_mib:g} MiB, but a student has {size / 2**20:.3g} MiB"
            )

    def check_steps(self, steps: int) -> None:
        """Raise NotAllowed if a merchant would train for too many ``steps`` in one round."""
        if self.max_steps is not None and steps > self.max_steps:
            raise NotAllowed(f"rule max_steps: at most {self.max_steps} per merchant and round, not {steps}")

    def check_size(self, size: int) -> None:
        """Raise NotAllowed if an uplink of ``size`` bytes is too large."""
        if self.max_update_mib is not None and size > self.max_update_mib * 2**20:
            raise NotAllowed(f"rule max_update_mib: at most {self.max_update_mib:g} MiB, not {size / 2**20:.3g} MiB")


class Limits(BaseModel):
    """A site's rules, and the limits of its merchants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: Rules = Rules()
    default: Limit = Limit()
    merchants: Mapping[str, Limit] = Field(
        {}, description="limits of single merchants, by name; keys that are not set are as in `default`"
    )

    def of(self, merchant: str) -> Limit:
        """Return one merchant's limit: keys of its own table, otherwise of ``[default]``."""
        own = self.merchants.get(merchant)
        if own is None:
            return self.default
        return self.default.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read the file at ``path``; None, in a simulation, allows everything.

        :raises ConfigError: the first invalid key
        """
        if path is None:
            return cls(rules=OPEN.rules, default=OPEN.default)
        try:
            return cls.model_validate(read_toml(path, "the limits in"))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error, cls)}") from error


OPEN = Limits(
    rules=Rules(scores=True, texts=True, max_model_mib=None, max_steps=None, max_seconds=None, max_memory_gib=None),
    default=Limit(max_epsilon=None, max_delta=None, units=None),
)
"""Allows everything, for a simulation, with all data on one machine of one owner."""


def _times(hours: str) -> tuple[time, time]:
    begin, end = hours.split("-")
    return time.fromisoformat(begin.strip()), time.fromisoformat(end.strip())
