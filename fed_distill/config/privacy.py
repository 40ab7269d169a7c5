"""What the federations promise, to whom, and at what price: one table for each privacy unit, with that unit's keys."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fed_distill.config.optimizer import OptimizerChanges
from fed_distill.config.tables import BatchSize, ClippingNorm, ConfigTable, Place, PositiveFloat, PositiveInt

UNPROTECTED = "none"
"""The unit of what promises nothing. Every other one names a mechanism that protects (``mechanisms.MECHANISMS``)."""


def is_protected(unit: str) -> bool:
    """Whether anything is promised under a privacy ``unit``."""
    return unit != UNPROTECTED


class PrivacyConfig(ConfigTable):
    """What all units have in common, and the lack of one.

    The unit says whose presence cannot be told from what is released: one ``example`` of a merchant, one ``group`` of
    its examples, or a whole ``merchant`` (``merchant`` by its update, ``vote`` by its votes). Controls are trained
    without.
    """

    unit: str = Field(
        UNPROTECTED,
        description="none; example, group: DP-SGD at merchants; merchant: noise on the mean update; vote: noise on "
        "votes; or the import path of a unit of your own, my_package.my_module:MyUnit",
    )
    ledger: Place | None = Field(
        None, description="folder of ledgers shared by runs; none for one of each seed and federation"
    )
    limits: Place | None = Field(None, description="TOML file of a site's own limits, which override these settings")

    @model_validator(mode="before")
    @classmethod
    def _of_this_unit(cls, table: Any) -> Any:
        if isinstance(table, Mapping):
            unit = table.get("unit", UNPROTECTED)
            if cls is OwnPrivacy and isinstance(unit, str) and ":" not in unit:
                near = difflib.get_close_matches(unit, UNITS, n=3) or sorted(UNITS)
                raise ValueError(
                    f"unknown privacy unit {unit!r}; did you mean {', '.join(near)}? An own privacy unit is named by "
                    "import path: my_package.my_module:MyName"
                )
            table = {key: value for key, value in table.items() if value is not None or key in cls.model_fields}
            for key in table.keys() - cls.model_fields.keys():
                _check_unit_of(str(key), str(unit))
        return table

    @property
    def protects(self) -> bool:
        """Whether the federations promise anything."""
        return is_protected(self.unit)

    @property
    def tells_scores(self) -> bool:
        """Whether merchants tell how many of their test examples a student has right."""
        return True


class NoPrivacy(PrivacyConfig):
    """Federations that promise nothing."""

    unit: Literal["none"] = "none"


class ProtectedConfig(PrivacyConfig):
    """What is common to all units that promise something.

    A promise has a target ``epsilon``, for which the noise is calculated, or a fixed ``noise_multiplier``.
    """

    epsilon: PositiveFloat | None = Field(None, description="largest epsilon of a federation, over all its rounds")
    noise_multiplier: Annotated[float, Field(gt=0.0, le=1e9)] | None = Field(
        None, description="fixed noise, instead of a target epsilon"
    )
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="delta of the promise; none for the smaller of 1e-5 and n^-1.1, where n is the merchant's noised "
        "number of examples (groups for unit group), or the number of merchants for units merchant and vote",
    )
    training: OptimizerChanges = Field(
        default_factory=OptimizerChanges,
        description="how merchants train in private federations; what is not given is as in [training.merchants]",
    )
    accountant: Literal["pld", "rdp"] = Field(
        "pld",
        description="composition by privacy loss distributions, or by Rényi DP (looser: needs 5 to 8 % more noise)",
    )
    report_scores: bool = Field(True, description="merchants report exactly how many test examples are right")

    @property
    def tells_scores(self) -> bool:
        """Whether merchants tell how many of their test examples a student has right."""
        return self.report_scores

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        given = [name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None]
        if len(given) != 1:
            found = "both are set, remove one" if given else "neither is set"
            raise ValueError(f"unit {self.unit!r} needs epsilon or noise_multiplier: {found}")
        return self


class FreezingConfig(ConfigTable):
    """Weights that private federations leave alone."""

    freeze: list[str] | None = Field(
        None, description="name patterns of weights that are not trained; none for a transformer's embeddings"
    )


class DPSGDConfig(FreezingConfig):
    """Private steps at merchants."""

    max_grad_norm: ClippingNorm = Field(
        1.0, description="L2 norm that the gradient of an example or group is clipped to"
    )
    batch_size: BatchSize | None = Field(
        None,
        description="expected examples (groups) of a private step; none for training.merchants.batch_size",
    )
    rows: PositiveInt | None = Field(
        None,
        description="train the embedding rows that the proxy set uses most, at most this many; "
        "none for all rows that it uses",
    )
    rate_scales: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="with sgd: factors on the learning rate, by name pattern of the weights",
    )
    row_rate_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="with sgd: the rate of an embedding row that the proxy set uses c times is "
        "scaled by c^-power; 0 for equal rates",
    )
    weighting: Literal["examples", "examples-squared"] = Field(
        "examples",
        description="with aggregator fedavg: weights of merchants in the mean; examples-squared has least "
        "noise if each step takes all examples (see batch_size)",
    )
    size_noise: PositiveFloat = Field(
        20.0,
        description="standard deviation of the noise on a merchant's number of examples (groups)",
    )


class GroupsConfig(DPSGDConfig):
    """Private steps that clip and sample groups of examples."""

    group: Literal["group", "text", "pair"] = Field(
        "group",
        description="which examples form a group: those with the same group number (a table's group "
        "column), the same first text (query or history), or the same second text (offer title)",
    )


class UpdatesConfig(FreezingConfig):
    """Whole updates, clipped and noised."""

    max_update_norm: ClippingNorm = Field(
        1.0, description="L2 norm that updates are clipped to; in the first round only, if adaptive"
    )
    adaptive_quantile: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="fraction of updates that the adaptive norm leaves unclipped; none: fixed norm"
    )


class VotesConfig(ConfigTable):
    """Votes, counted with noise."""

    queries: PositiveInt | None = Field(None, description="proxy examples voted on in a round; none for all")
    answers: PositiveInt = Field(300, description="largest number of examples labelled in a round")
    consensus: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.6, description="fraction of a round's merchants that must agree on a label"
    )
    vote_noise_ratio: PositiveFloat = Field(
        3.75, description="noise of the consensus check divided by noise of the label"
    )


class ExamplePrivacy(DPSGDConfig, ProtectedConfig):
    """DP-SGD at merchants, for one labelled example."""

    unit: Literal["example"] = "example"


class GroupPrivacy(GroupsConfig, ProtectedConfig):
    """DP-SGD at merchants, for a group of examples."""

    unit: Literal["group"] = "group"


class MerchantPrivacy(UpdatesConfig, ProtectedConfig):
    """Noise on the mean update, for a whole merchant."""

    unit: Literal["merchant"] = "merchant"


class VotePrivacy(VotesConfig, ProtectedConfig):
    """Noise on the counts of votes, for a whole merchant."""

    unit: Literal["vote"] = "vote"


class OwnPrivacy(ProtectedConfig):
    """A unit of one's own, by import path."""

    unit: str
    options: dict[str, Any] = Field(default_factory=dict, description="the unit's own settings")


UNITS: Mapping[str, type[PrivacyConfig]] = {
    "none": NoPrivacy,
    "example": ExamplePrivacy,
    "group": GroupPrivacy,
    "merchant": MerchantPrivacy,
    "vote": VotePrivacy,
}
"""The table of each built-in unit."""


def table_of_unit(unit: Any) -> type[PrivacyConfig]:
    """The table of a unit by name; that of one's own for what is no name of a built-in one."""
    return UNITS.get(unit, OwnPrivacy) if isinstance(unit, str) else OwnPrivacy


def _tag(table: Any) -> str:
    unit = table.get("unit", UNPROTECTED) if isinstance(table, Mapping) else getattr(table, "unit", UNPROTECTED)
    return f"<{table_of_unit(unit).__name__}>"


Privacy = Annotated[
    Annotated[NoPrivacy, Tag("<NoPrivacy>")]
    | Annotated[ExamplePrivacy, Tag("<ExamplePrivacy>")]
    | Annotated[GroupPrivacy, Tag("<GroupPrivacy>")]
    | Annotated[MerchantPrivacy, Tag("<MerchantPrivacy>")]
    | Annotated[VotePrivacy, Tag("<VotePrivacy>")]
    | Annotated[OwnPrivacy, Tag("<OwnPrivacy>")],
    Discriminator(_tag),
]
"""The table ``[privacy]``, chosen by its ``unit``."""


def _check_unit_of(key: str, unit: str) -> None:
    """ValueError for a key that another unit has."""
    owners = list(_units_with(key))
    if not owners:
        return
    named = owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} or {owners[-1]}"
    if not is_protected(unit):
        raise ValueError(f"{key} without a unit: set privacy.unit to {named}")
    if unit not in UNITS:
        raise ValueError(f"{key} is of unit {named}: settings of a unit of your own are in privacy.options")
    raise ValueError(f"{key} is of unit {named}, not of {unit}: drop it, or take that unit")


def _units_with(key: str) -> Iterator[str]:
    return (unit for unit, table in UNITS.items() if key in table.model_fields)
