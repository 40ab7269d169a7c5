"""What the federations promise, to whom, and at what price."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import OptimizerChanges
from fed_distill.config.tables import BatchSize, ClippingNorm, ConfigTable, Place, PositiveFloat, PositiveInt

UNPROTECTED = "none"
"""The unit of what promises nothing. Every other one names a mechanism that protects (``mechanisms.MECHANISMS``)."""


def is_protected(unit: str) -> bool:
    """Whether anything is promised under a privacy ``unit``."""
    return unit != UNPROTECTED


class PrivacyConfig(ConfigTable):
    """What the federations promise, to whom, and at what price; controls are trained without.

    The unit says whose presence cannot be told from what is released: one ``example`` of a merchant, one ``group`` of
    its examples, or a whole ``merchant`` (``merchant`` by its update, ``vote`` by its votes). A promise has a target
    ``epsilon``, for which the noise is calculated, or a fixed ``noise_multiplier``. Settings of units other than the
    chosen one, and settings that a federation's method does not use, have no effect, so that a study can vary both.
    """

    unit: str = Field(
        UNPROTECTED,
        description="none; example, group: DP-SGD at merchants; merchant: noise on the mean update; vote: noise on "
        "votes; or the import path of a unit of your own, my_package.my_module:MyUnit",
    )
    group: Literal["group", "text", "pair"] = Field(
        "group",
        description="unit group: which examples form a group: those with the same group number (a table's group "
        "column), the same first text (query or history), or the same second text (offer title)",
    )
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
    max_grad_norm: ClippingNorm = Field(
        1.0, description="units example, group: L2 norm that the gradient of an example or group is clipped to"
    )
    batch_size: BatchSize | None = Field(
        None,
        description="units example, group: expected examples (groups) of a private step; none for "
        "training.merchants.batch_size",
    )
    freeze: list[str] | None = Field(
        None, description="name patterns of weights that are not trained; none for a transformer's embeddings"
    )
    max_update_norm: ClippingNorm = Field(
        1.0, description="unit merchant: L2 norm that updates are clipped to; in the first round only, if adaptive"
    )
    adaptive_quantile: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="unit merchant: fraction of updates that the adaptive norm leaves unclipped; none: fixed norm"
    )
    queries: PositiveInt | None = Field(None, description="unit vote: proxy examples voted on in a round; none for all")
    answers: PositiveInt = Field(300, description="unit vote: largest number of examples labelled in a round")
    consensus: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.6, description="unit vote: fraction of a round's merchants that must agree on a label"
    )
    vote_noise_ratio: PositiveFloat = Field(
        3.75, description="unit vote: noise of the consensus check divided by noise of the label"
    )
    rows: PositiveInt | None = Field(
        None,
        description="units example, group: train the embedding rows that the proxy set uses most, at most this many; "
        "none for all rows that it uses",
    )
    rate_scales: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="units example, group with sgd: factors on the learning rate, by name pattern of the weights",
    )
    row_rate_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="units example, group with sgd: the rate of an embedding row that the proxy set uses c times is "
        "scaled by c^-power; 0 for equal rates",
    )
    weighting: Literal["examples", "examples-squared"] = Field(
        "examples",
        description="units example, group with fedavg: weights of merchants in the mean; examples-squared has least "
        "noise if each step takes all examples (see batch_size)",
    )
    size_noise: PositiveFloat = Field(
        20.0,
        description="units example, group: standard deviation of the noise on a merchant's number of examples (groups)",
    )
    report_scores: bool = Field(True, description="merchants report exactly how many test examples are right")
    ledger: Place | None = Field(
        None, description="folder of ledgers shared by runs; none for one of each seed and federation"
    )
    limits: Place | None = Field(None, description="TOML file of a site's own limits, which override these settings")

    @property
    def protects(self) -> bool:
        """Whether the federations promise anything."""
        return is_protected(self.unit)

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        given = [name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None]
        if not self.protects and given:
            raise ValueError(f"{given[0]} without a unit: set privacy.unit to example, group, merchant or vote")
        if self.protects and len(given) != 1:
            found = "both are set, remove one" if given else "neither is set"
            raise ValueError(f"unit {self.unit!r} needs epsilon or noise_multiplier: {found}")
        return self
