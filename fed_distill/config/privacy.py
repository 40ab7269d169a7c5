"""What the federations promise, to whom, and at what price."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import BatchSize, ConfigTable, PositiveFloat, PositiveInt


class PrivacyConfig(ConfigTable):
    """What the federations promise, to whom, and at what price; controls are trained without.

    The unit says whose presence cannot be told from what is released: one ``example`` of a merchant, or a whole
    ``merchant``. A promise has a target ``epsilon``, for which the noise is found, or a fixed ``noise_multiplier``.
    What is of another unit than the one chosen, or of no use to a federation's method, is not looked at, so that a
    study can vary both.
    """

    unit: Literal["none", "example", "merchant", "vote"] = Field(
        "none", description="example: DP-SGD at merchants; merchant: noise on the merged update; vote: on label votes"
    )
    epsilon: PositiveFloat | None = Field(None, description="largest epsilon of a whole federation, all rounds")
    noise_multiplier: PositiveFloat | None = Field(None, description="noise instead of a target epsilon")
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="of the promise; none for n^-1.1, at most 1e-3, n the merchant's examples or the merchants"
    )
    optimizer: Literal["sgd", "adamw"] | None = Field(
        None, description="of merchants in private federations; none for training.optimizer"
    )
    learning_rate: PositiveFloat | None = Field(
        None, description="of merchants in private federations; none for training.learning_rate"
    )
    accountant: Literal["rdp", "prv"] = Field("rdp", description="Rényi DP, or numerical (tighter, slower)")
    max_grad_norm: PositiveFloat = Field(1.0, description="unit example: largest L2 norm of an example's gradient")
    batch_size: BatchSize | None = Field(
        None, description="unit example: expected examples of a private step; none for training.batch_size"
    )
    freeze: list[str] | None = Field(
        None, description="patterns of weights that merchants leave alone; none for a transformer's embeddings"
    )
    max_update_norm: PositiveFloat = Field(
        1.0, description="unit merchant: largest L2 norm of a merchant's update; at the start, if it adapts"
    )
    adaptive_quantile: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="unit merchant: share of updates that the norm shall not clip; none for a fixed norm"
    )
    queries: PositiveInt | None = Field(None, description="unit vote: proxy examples asked about in a round; none: all")
    answers: PositiveInt = Field(300, description="unit vote: examples answered in a round at most")
    consensus: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.6, description="unit vote: share of a round's merchants that must agree on an answer"
    )
    vote_noise_ratio: PositiveFloat = Field(
        3.75, description="unit vote: noise on whether there is consensus over noise on the answer"
    )
    rows: PositiveInt | None = Field(
        None,
        description="unit example: of a table, train so many rows that the proxy set uses most; none for all it uses",
    )
    rate_scales: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="unit example, optimizer sgd: factors on merchants' learning rate, by pattern of weights' names",
    )
    row_rate_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.0,
        description="unit example, optimizer sgd: a table's row that the proxy set uses c times moves by c^-power; 0: "
        "all alike",
    )
    weighting: Literal["examples", "examples-squared"] = Field(
        "examples",
        description="unit example, aggregator fedavg: what a merchant counts for; squared: the mean of least noise "
        "where a step is of all examples (see batch_size)",
    )
    size_noise: PositiveFloat = Field(
        20.0, description="unit example: deviation of the noise on a merchant's number of examples, by which it counts"
    )
    report_scores: bool = Field(True, description="merchants tell how many of their test examples are right, exactly")
    ledger: Path | None = Field(
        None, description="folder of ledgers that add up over runs; none: each seed and federation has its own"
    )
    limits: Path | None = Field(None, description="a site's own limits, a TOML file; they win over everything here")

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        given = [name for name in ("epsilon", "noise_multiplier") if getattr(self, name) is not None]
        if self.unit == "none" and given:
            raise ValueError(f"{given[0]} without a unit: set privacy.unit to example, merchant or vote")
        if self.unit != "none" and len(given) != 1:
            raise ValueError(f"unit {self.unit!r} needs epsilon or noise_multiplier: give exactly one")
        return self
