"""Configuration of differential privacy: one table for each privacy unit, with the keys of that unit."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fed_distill.config.optimizer import OptimizerChanges
from fed_distill.config.tables import BatchSize, ClippingNorm, ConfigTable, NoiseStd, Place, PositiveFloat, PositiveInt

UNPROTECTED = "none"
"""The unit without privacy. Every other unit names a mechanism of ``mechanisms.MECHANISMS``."""
GAUSSIAN = ("noise_multiplier", "delta")
"""Keys of units that add Gaussian noise, which unit ``label`` does not have."""


def is_protected(unit: str) -> bool:
    """Whether a privacy ``unit`` gives a differential privacy guarantee."""
    return unit != UNPROTECTED


class PrivacyConfig(ConfigTable):
    """Keys of all privacy units, and of none.

    The unit is what neighbouring datasets differ in: one ``example`` of a merchant, one ``group`` of its examples, the
    ``label`` of one example, or a whole merchant (``merchant``: its update, ``vote``: its votes). Controls are trained
    without privacy.
    """

    unit: str = Field(
        UNPROTECTED,
        description="none; example, group: DP-SGD at merchants; label: randomized labels, for public texts; merchant: "
        "noise on the mean update; vote: noise on votes; or the import path of a custom unit, "
        "my_package.my_module:MyUnit",
    )
    ledger: Place | None = Field(
        None, description="folder of privacy ledgers shared by runs; none: one ledger per seed and federation"
    )
    limits: Place | None = Field(None, description="TOML file of a site's limits, which override these settings")

    @model_validator(mode="before")
    @classmethod
    def _of_this_unit(cls, table: Any) -> Any:
        if isinstance(table, Mapping):
            unit = table.get("unit", UNPROTECTED)
            if cls is OwnPrivacy and isinstance(unit, str) and ":" not in unit:
                near = difflib.get_close_matches(unit, UNITS, n=3) or sorted(UNITS)
                raise ValueError(
                    f"unknown privacy unit {unit!r}; did you mean {', '.join(near)}? For a custom unit, give "
                    "its import path: my_package.my_module:MyName"
                )
            table = {key: value for key, value in table.items() if value is not None or key in cls.model_fields}
            for key in table.keys() - cls.model_fields.keys():
                _check_unit_of(str(key), str(unit))
        return table

    @property
    def protects(self) -> bool:
        """Whether the federations have a differential privacy guarantee."""
        return is_protected(self.unit)

    @property
    def reports_scores(self) -> bool:
        """Whether merchants report their number of correctly classified test examples."""
        return True


class NoPrivacy(PrivacyConfig):
    """Federations without differential privacy."""

    unit: Literal["none"] = "none"


class ProtectedConfig(PrivacyConfig):
    """Keys of all units with a differential privacy guarantee.

    It has a target ``epsilon``, from which the noise is calibrated, or a fixed ``noise_multiplier``.
    """

    epsilon: PositiveFloat | None = Field(None, description="maximum epsilon of a federation, over all its rounds")
    noise_multiplier: NoiseStd | None = Field(None, description="fixed noise multiplier, instead of a target epsilon")
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="delta of the guarantee; none: the smaller of 1e-5 and n^-1.1, where n is the merchant's noised "
        "number of examples (groups for unit group), or the number of merchants for units merchant and vote",
    )
    training: OptimizerChanges = Field(
        default_factory=OptimizerChanges,
        description="training at merchants in private federations; keys that are not set are as in "
        "[training.merchants]",
    )
    accountant: Literal["pld", "rdp"] = Field(
        "pld",
        description="composition by privacy loss distributions, or by Rényi DP (looser: needs 5 to 8 % more noise)",
    )
    report_scores: bool = Field(
        True,
        description="merchants report their exact number of correct test examples, without noise, and a simulation "
        "writes scores by test unit (unit_scores.json)",
    )

    @property
    def reports_scores(self) -> bool:
        """Whether merchants report their number of correctly classified test examples."""
        return self.report_scores

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        given = [name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None]
        if len(given) != 1:
            found = "both are set, remove one" if given else "set one"
            raise ValueError(f"unit {self.unit!r} requires either epsilon or noise_multiplier: {found}")
        return self


class FreezingConfig(ConfigTable):
    """Weights that private federations do not train."""

    freeze: list[str] | None = Field(
        None, description="name patterns of frozen weights; none: the embeddings of a transformer"
    )


class DPSGDConfig(FreezingConfig):
    """DP-SGD at merchants."""

    max_grad_norm: ClippingNorm = Field(
        1.0, description="L2 norm to which the gradient of an example or group is clipped"
    )
    batch_size: BatchSize | None = Field(
        None,
        description="expected number of examples (groups) in a private step; none: training.merchants.batch_size",
    )
    rows: PositiveInt | None = Field(
        None,
        description="maximum number of trained embedding rows, those that the proxy set uses most; none: all rows "
        "that it uses",
    )
    rate_scales: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="with sgd: factors of the learning rate, by name pattern of the weights",
    )
    row_rate_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="with sgd: the rate of an embedding row that the proxy set uses c times is "
        "scaled by c^-power; 0: equal rates",
    )
    weighting: Literal["examples", "examples-squared"] = Field(
        "examples",
        description="with aggregator fedavg: weights of merchants in the mean; examples-squared minimizes the noise if "
        "each step uses all examples (see batch_size)",
    )
    size_noise: NoiseStd = Field(
        20.0,
        description="standard deviation of the noise on a merchant's number of examples (groups)",
    )
    expertise_noise: NoiseStd = Field(
        10.0,
        description="with methods that send expertise: standard deviation of the noise on the sum of a merchant's text "
        "features, to which an example (group) contributes a vector of norm at most 1",
    )


class GroupsConfig(DPSGDConfig):
    """DP-SGD that samples and clips groups of examples."""

    group: Literal["group", "user", "text", "pair"] = Field(
        "group",
        description="examples that form a group: those with the same group number (a table's group "
        "column), all of one user (the same, in data where a user is at one merchant, else refused), those with the "
        "same first text (query or history), or the same second text (offer title)",
    )


class UpdatesConfig(FreezingConfig):
    """Clipping and noise of whole updates."""

    max_update_norm: ClippingNorm = Field(
        1.0, description="L2 norm to which updates are clipped; only in the first round with adaptive_quantile"
    )
    adaptive_quantile: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="fraction of updates that adaptive clipping leaves unchanged; none: fixed norm"
    )


class VotesConfig(ConfigTable):
    """Votes with noisy counts."""

    queries: PositiveInt | None = Field(None, description="number of proxy examples in a round's vote; none: all")
    answers: PositiveInt = Field(300, description="maximum number of examples labelled in a round")
    consensus: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.6, description="fraction of a round's merchants that must agree on a label"
    )
    vote_noise_ratio: PositiveFloat = Field(
        3.75, description="noise of the consensus check, divided by the noise of the label"
    )


class LabelsConfig(ConfigTable):
    """Randomized response on labels."""

    texts_public: bool = Field(
        False,
        description="declares that the texts of all merchants' training examples are public, and which of them each "
        "merchant has, labelled or not; required, because only their labels are hidden",
    )
    stages: Literal[1, 2] = Field(
        1,
        description="1: all labels of a merchant are randomized before its first round; 2: those of one half then, "
        "and those of the other half later, with the predictions of a federated student as prior (LP-2ST)",
    )
    second_stage: Annotated[int, Field(ge=2)] | None = Field(
        None, description="with stages = 2: round of the second half; none: the middle of the federation"
    )
    prior_temperature: Annotated[float, Field(ge=0.01, le=1e6)] = Field(
        1.0,
        description="temperature of the student's predictions that are the prior of the draw: above 1 if it is too "
        "sure",
    )
    label_temperature: Annotated[float, Field(ge=0.01, le=1e6)] | None = Field(
        None,
        description="temperature of the student's predictions in posterior targets and in the loss with them: the "
        "higher, the more it learns of labels of which it was sure; none: 8 / epsilon, and 1 at least. It is 1 for "
        "methods with more in the loss of private examples than a cross-entropy, such as fml",
    )
    targets: Literal["posterior", "labels"] = Field(
        "posterior",
        description="training targets of a round: probabilities of the true label, given the randomized one and what "
        "the round's received student predicts, or the randomized labels themselves",
    )


class ExamplePrivacy(DPSGDConfig, ProtectedConfig):
    """DP-SGD at merchants, for one labelled example."""

    unit: Literal["example"] = "example"


class GroupPrivacy(GroupsConfig, ProtectedConfig):
    """DP-SGD at merchants, for a group of examples."""

    unit: Literal["group"] = "group"


class LabelPrivacy(LabelsConfig, ProtectedConfig):
    """Randomized response, for the label of one example."""

    unit: Literal["label"] = "label"
    epsilon: Annotated[float, Field(ge=0.01, allow_inf_nan=False)] | None = Field(
        None, description="epsilon of each label, over all rounds of a federation; delta is 0"
    )

    @model_validator(mode="after")
    def _pure(self) -> Self:
        for name in GAUSSIAN:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for Gaussian noise, which unit 'label' does not add: set epsilon only")
        return self


class MerchantPrivacy(UpdatesConfig, ProtectedConfig):
    """Noise on the mean update, for a whole merchant."""

    unit: Literal["merchant"] = "merchant"


class VotePrivacy(VotesConfig, ProtectedConfig):
    """Noise on the counts of votes, for a whole merchant."""

    unit: Literal["vote"] = "vote"


class OwnPrivacy(ProtectedConfig):
    """A custom unit, by import path."""

    unit: str
    options: dict[str, Any] = Field(default_factory=dict, description="options of the custom unit")


UNITS: Mapping[str, type[PrivacyConfig]] = {
    "none": NoPrivacy,
    "example": ExamplePrivacy,
    "group": GroupPrivacy,
    "label": LabelPrivacy,
    "merchant": MerchantPrivacy,
    "vote": VotePrivacy,
}
"""The table of each built-in unit."""


def table_of_unit(unit: Any) -> type[PrivacyConfig]:
    """Return the table of a built-in unit by name, otherwise that of a custom unit."""
    return UNITS.get(unit, OwnPrivacy) if isinstance(unit, str) else OwnPrivacy


def _tag(table: Any) -> str:
    unit = table.get("unit", UNPROTECTED) if isinstance(table, Mapping) else getattr(table, "unit", UNPROTECTED)
    return f"<{table_of_unit(unit).__name__}>"


Privacy = Annotated[
    Annotated[NoPrivacy, Tag("<NoPrivacy>")]
    | Annotated[ExamplePrivacy, Tag("<ExamplePrivacy>")]
    | Annotated[GroupPrivacy, Tag("<GroupPrivacy>")]
    | Annotated[LabelPrivacy, Tag("<LabelPrivacy>")]
    | Annotated[MerchantPrivacy, Tag("<MerchantPrivacy>")]
    | Annotated[VotePrivacy, Tag("<VotePrivacy>")]
    | Annotated[OwnPrivacy, Tag("<OwnPrivacy>")],
    Discriminator(_tag),
]
"""The table ``[privacy]``, chosen by its ``unit``."""


def _check_unit_of(key: str, unit: str) -> None:
    """Raise ValueError for a key of another unit."""
    owners = list(_units_with(key))
    if not owners:
        return
    named = owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} or {owners[-1]}"
    if not is_protected(unit):
        raise ValueError(f"{key} requires a unit: set privacy.unit to {named}, or remove {key}")
    if unit not in UNITS:
        raise ValueError(f"{key} belongs to unit {named}: set options of a custom unit in privacy.options")
    raise ValueError(f"{key} belongs to unit {named}, not to {unit}: remove it, or change privacy.unit")


def _units_with(key: str) -> Iterator[str]:
    return (unit for unit, table in UNITS.items() if key in table.model_fields)
