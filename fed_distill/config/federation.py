"""Configuration of the method, its rounds, the coding of messages, and the adaptation after the last round."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.tables import ConfigTable, PositiveFloat, PositiveInt

StageTable = str | dict[str, Any]
INTAKE = ("deadline", "minimum_share", "retries", "pause", "max_norm_ratio", "max_share", "max_size_ratio")
"""Keys of ``[federation]`` that set which uplinks the server accepts, how long it waits, and their maximum weight. They
do not affect merchants and may change when a run is resumed."""


class TransportConfig(ConfigTable):
    """Compression of messages: stages by name, or tables with ``stage`` and its options, applied in order.

    By default messages are not compressed. Messages of controls never are.
    """

    weights: list[StageTable] = Field(
        default_factory=list, description="stages for updates in uplinks: svd, top-k, then sign, int4, int8 or float16"
    )
    soft_labels: list[StageTable] = Field(
        default_factory=list,
        description="stages for soft labels in uplinks: log-int4, or top-k, then int4, int8 or float16",
    )
    downlink_weights: list[StageTable] = Field(
        default_factory=list, description="stages for the global student: int4, int8 or float16"
    )
    downlink_soft_labels: list[StageTable] = Field(
        default_factory=list, description="stages for the consensus: log-int4, or top-k, then int4, int8 or float16"
    )
    error_feedback: bool = Field(
        True, description="merchants keep the compression error of an update and add it to the next update"
    )
    soft_label_cache: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description="send soft labels only for proxy examples with a probability that changed by more than this since "
        "it was last sent; none: send all",
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        entries = (*self.weights, *self.soft_labels, *self.downlink_weights, *self.downlink_soft_labels)
        for entry in entries:
            if isinstance(entry, dict) and not isinstance(entry.get("stage"), str):
                raise ValueError('a table lacks the key stage: write { stage = "top-k", ... }')
        for entry in self.downlink_weights:
            name = entry if isinstance(entry, str) else entry["stage"]
            if name in ("top-k", "svd", "sign"):
                raise ValueError(f"downlink_weights: {name} is for updates: use int4, int8 or float16")
        return self


class FederationConfig(ConfigTable):
    """The method and its rounds."""

    method: str = Field("fedavg-kd", description="name of a method, or import path of a custom one")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    aggregator: str = Field("fedavg", description="aggregator of weights: fedavg, fedsubavg, fedadam, fedmedian ...")
    aggregator_options: dict[str, Any] = Field(default_factory=dict, description="options of the aggregator")
    start: Literal["teacher", "labels"] = Field(
        "teacher",
        description="initial global student: teacher: the control `server`, trained on the server's labels and the "
        "teacher's soft labels; labels: the control `student`, trained on the server's labels only",
    )
    rounds: PositiveInt = Field(10, description="maximum number of rounds")
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the merchants sampled in each round"
    )
    validate_every: PositiveInt = Field(
        1, description="rounds between two validations; the last round is always validated"
    )
    patience: PositiveInt | None = Field(
        None, description="validations without improvement before it stops at its best round; none: all rounds"
    )
    deadline: PositiveFloat | None = Field(
        None,
        description="seconds that a round waits for real sites; later uplinks are ignored; none: no limit",
    )
    minimum_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="minimum share of the requested merchants for a round to be merged"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        3, description="maximum number of times that a round is repeated if too many sites were offline or late"
    )
    pause: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        60.0, description="seconds before a round is repeated"
    )
    max_norm_ratio: PositiveFloat | None = Field(
        1000.0,
        description="maximum ratio of an update's norm to the median norm, above which it is rejected; none: no limit; "
        "not used with privacy.unit merchant, which clips updates",
    )
    max_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        0.6,
        description="maximum weight of one merchant, as a share of a round's training examples; none: no limit; not "
        "used with privacy.unit merchant, which weights all merchants equally",
    )
    max_size_ratio: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        20.0, description="maximum weight of one merchant, as a ratio to the median number of examples; none: no limit"
    )
    transport: TransportConfig | None = Field(
        None, description="compression of this federation's messages; none: as in [transport]"
    )
    label: str = Field(
        "",
        pattern=r"^[^/\x00-\x1f]*$",
        description="name in tables and files; empty: names of the method and the aggregator",
    )

    @property
    def title(self) -> str:
        """The federation's name in tables and folders."""
        return self.label or (self.method if self.aggregator == "fedavg" else f"{self.method}+{self.aggregator}")


GENTLER = 0.3
"""Default learning rate of adaptation, relative to the server's."""


class AdaptationConfig(OptimizerChanges):
    """Adaptation of the global student after the last round. The optimizer's keys apply to the three stages at the
    server; keys that are not set are as in [training.server]."""

    learning_rate: PositiveFloat | None = Field(
        None, description=f"peak learning rate, after warm-up; none: {GENTLER:g} times that of [training.server]"
    )

    enabled: bool = Field(
        True, description="fine-tune on the server's data, distil again on domain text, fine-tune again"
    )
    epochs: PositiveFloat = Field(1.0, description="epochs of each of the three stages")
    unfreeze: bool = Field(
        False, description="unfreeze the layers gradually, the last one first, within the same epochs"
    )
    personal: bool = Field(
        False, description="also adapt the student at each merchant, as in [training.merchants]; the merchant keeps it"
    )
    personal_epochs: PositiveFloat = Field(1.0, description="epochs of the adaptation at a merchant")

    def over(self, base: OptimizerConfig) -> OptimizerConfig:
        """Return the optimizer of each stage; ``base`` is that of [training.server]."""
        found = super().over(base)
        gentle = GENTLER * base.learning_rate if self.learning_rate is None else self.learning_rate
        return found.model_copy(update={"learning_rate": gentle})
