"""The method, its rounds, how messages are coded, and what follows the last round."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.tables import ConfigTable, PositiveFloat, PositiveInt

StageTable = str | dict[str, Any]
INTAKE = ("deadline", "minimum_share", "retries", "pause", "max_norm_ratio", "max_share", "max_size_ratio")
"""Keys of ``[federation]`` that say whose answers the server takes, how long it waits for them, and what they count for
at most: nothing of them reaches a merchant, and a run that is resumed may have others."""


class TransportConfig(ConfigTable):
    """How messages are made smaller: stages by name, or tables with ``stage`` and its options, applied in their order.

    Nothing is coded by default. Controls never are.
    """

    weights: list[StageTable] = Field(
        default_factory=list, description="of uplinks, as updates: svd, top-k, then sign, int4, int8 or float16"
    )
    soft_labels: list[StageTable] = Field(
        default_factory=list, description="of uplinks: top-k, then int4, int8 or float16"
    )
    downlink_weights: list[StageTable] = Field(
        default_factory=list, description="of the global student: int4, int8 or float16"
    )
    downlink_soft_labels: list[StageTable] = Field(
        default_factory=list, description="of the consensus: top-k, then int4, int8 or float16"
    )
    error_feedback: bool = Field(
        True, description="merchants keep what coding loses of an update, and add it to the next"
    )
    soft_label_cache: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description="send soft labels only of proxy examples in which a probability changed by more than this since "
        "the server had it; none to send all",
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        entries = (*self.weights, *self.soft_labels, *self.downlink_weights, *self.downlink_soft_labels)
        for entry in entries:
            if isinstance(entry, dict) and not isinstance(entry.get("stage"), str):
                raise ValueError('a table without a stage: write { stage = "top-k", ... }')
        for entry in self.downlink_weights:
            name = entry if isinstance(entry, str) else entry["stage"]
            if name in ("top-k", "svd", "sign"):
                raise ValueError(f"downlink_weights: {name} is for updates; whole weights take int4, int8 or float16")
        return self


class FederationConfig(ConfigTable):
    """The method and its rounds."""

    method: str = Field("fedavg-kd", description="name of a method, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own options")
    aggregator: str = Field("fedavg", description="how weights are merged: fedavg, fedsubavg, fedadam, fedmedian ...")
    aggregator_options: dict[str, Any] = Field(default_factory=dict, description="the aggregator's own options")
    rounds: PositiveInt = 10
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of merchants sampled in a round"
    )
    validate_every: PositiveInt = Field(
        1, description="rounds between two validations; the last round is always validated"
    )
    patience: PositiveInt | None = Field(
        None, description="validations without a better one before it stops, with its best round; none for all rounds"
    )
    deadline: PositiveFloat | None = Field(
        None,
        description="seconds that a round waits for real sites; later answers are dropped; none for however long",
    )
    minimum_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="share of the merchants asked without which a round is not merged"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="times that a round is asked again if sites that were away, late or at rest were too many"
    )
    pause: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        60.0, description="seconds before it is asked again"
    )
    max_norm_ratio: PositiveFloat | None = Field(
        1000.0,
        description="times the median norm of updates beyond which one is rejected; none for any that is finite; not "
        "used under privacy.unit merchant, which clips updates and compares nobody with others",
    )
    max_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        0.6,
        description="share of a round's training examples that one merchant may count for, whatever size it claims; "
        "none for any. Not used under privacy.unit merchant, where all count the same",
    )
    max_size_ratio: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        20.0, description="times the median merchant's examples that one may count for; none for any"
    )
    transport: TransportConfig | None = Field(None, description="how its messages are coded; none for [transport]")
    label: str = Field(
        "",
        pattern=r"^[^/\x00-\x1f]*$",
        description="name in tables and files; the method's and aggregator's names if empty",
    )

    @property
    def title(self) -> str:
        """Name of this federation in tables and folders."""
        return self.label or (self.method if self.aggregator == "fedavg" else f"{self.method}+{self.aggregator}")


GENTLER = 0.3
"""Of the server's learning rate that of adaptation, where it has none of its own."""


class AdaptationConfig(OptimizerChanges):
    """What happens to the global student after the last round; the optimizer's keys are of the three stages at the
    server, and one that is not given is as in [training.server]."""

    learning_rate: PositiveFloat | None = Field(
        None, description=f"the highest, after warm-up; none for {GENTLER:g} of that of [training.server]"
    )

    enabled: bool = Field(
        True, description="fine-tune on the server's data, distil again on domain text, fine-tune again"
    )
    epochs: PositiveFloat = Field(1.0, description="epochs of each of the three stages")
    unfreeze: bool = Field(
        False, description="fine-tune its last layer first, then with each layer before it, all in the same epochs"
    )
    personal: bool = Field(
        False, description="also adapt to each merchant, which trains as [training.merchants] says and keeps the result"
    )
    personal_epochs: PositiveFloat = Field(1.0, description="epochs of a merchant's own adaptation")

    def over(self, base: OptimizerConfig) -> OptimizerConfig:
        """The optimizer of each stage, where ``base`` is that of [training.server]."""
        found = super().over(base)
        gentle = GENTLER * base.learning_rate if self.learning_rate is None else self.learning_rate
        return found.model_copy(update={"learning_rate": gentle})
