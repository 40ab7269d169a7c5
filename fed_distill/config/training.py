"""How students are trained, at merchants and at the server."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.tables import BatchSize, ConfigTable, Place, PositiveFloat, PositiveInt, Share


class AugmentationConfig(ConfigTable):
    """What is done to labelled texts before a training, a merchant's round or one at the server; drawn anew for each.

    Shares of the words of a text, or of the characters where they are words (Chinese); ``translated`` of the texts.
    """

    synonyms: Share = Field(0.0, description="replaced by a synonym, of those that have one")
    deletion: Share = Field(0.0, description="left out; one at least stays")
    characters: Share = Field(0.0, description="with two neighbouring characters swapped")
    dictionary: Place | None = Field(
        None, description="groups of synonyms, one a line, separated by commas; none for built-in shopping words"
    )

    translated: Share = Field(0.0, description="of the texts, put into another language and back, before all else")
    back_translation: tuple[str, ...] = Field(
        default=(),
        description="the translation model there, and the one back: folders or hub ids with local files. A real site "
        "loads no model that a server names, and leaves its texts untranslated",
    )

    @model_validator(mode="after")
    def _there_and_back(self) -> Self:
        if len(self.back_translation) not in (0, 2):
            raise ValueError("back_translation is two models, there and back")
        if bool(self.translated) != bool(self.back_translation):
            raise ValueError("translated and back_translation go together: give both, or drop both")
        return self

    @property
    def enabled(self) -> bool:
        """Whether anything is changed."""
        return max(self.synonyms, self.deletion, self.characters, self.translated) > 0


class AdversarialConfig(ConfigTable):
    """Training on labelled examples whose embeddings are moved where the loss rises; half of the loss is theirs."""

    attack: Literal["none", "fgm", "pgd"] = Field("none", description="one step of length radius, or several within it")
    radius: PositiveFloat = Field(1.0, description="largest L2 norm of what is added to an example's embeddings")
    steps: PositiveInt = Field(3, description="of pgd")
    step_size: PositiveFloat = Field(0.3, description="of pgd: length of a step")


class SharedTrainingConfig(ConfigTable):
    """What all trainings have in common, at a merchant and at the server."""

    label_smoothing: Share = Field(0.0, description="share of a label that is spread evenly over all classes")
    r_drop: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.0, description="weight of the divergence of two passes with other dropout, over labelled examples; 0 for one"
    )
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    adversarial: AdversarialConfig = Field(default_factory=AdversarialConfig)
    submodel: bool = Field(True, description="train and send only the embedding rows that a merchant's data touch")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", description="of products in a cohort's forward and backward pass; weights stay float32"
    )


class TrainerConfig(SharedTrainingConfig, OptimizerConfig):
    """What a trainer is told: what all trainings have in common, its own optimizer and its batch size."""

    batch_size: BatchSize = 32


class MerchantsConfig(OptimizerConfig):
    """Merchants in federations, the fedavg control, and where they adapt the student to themselves."""

    batch_size: BatchSize = 32


class ServerConfig(OptimizerConfig):
    """The server's student, its assistants, and what the server trains after a merge."""

    batch_size: BatchSize = 128
    epochs: PositiveFloat = Field(3.0, description="epochs of the server's student before the first round")
    temperature: PositiveFloat = Field(2.0, description="distillation temperature, of the pooled control too")


class PooledConfig(OptimizerChanges):
    """The control on everybody's data, from the server's student; a key that is not given is as in [training.server]"""

    learning_rate: PositiveFloat = Field(5e-3, description="the highest, after warm-up")
    batch_size: BatchSize | None = Field(None, description="none for that of [training.server]")
    epochs: PositiveFloat = Field(4.0, description="epochs of labels and of the teacher, in turns")


class LocalConfig(OptimizerChanges):
    """The control of each merchant alone, from the server's student; a key that is not given is as in
    [training.merchants]."""

    batch_size: BatchSize | None = Field(None, description="none for that of [training.merchants]")
    epochs: PositiveFloat = Field(2.0, description="epochs over a merchant's own examples")


class TrainingConfig(SharedTrainingConfig):
    """How students are trained: what all trainings have in common here, what each has of its own in its table."""

    merchants: MerchantsConfig = Field(default_factory=MerchantsConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    pooled: PooledConfig = Field(default_factory=PooledConfig)
    local: LocalConfig = Field(default_factory=LocalConfig)

    @model_validator(mode="after")
    def _changes_go_together(self) -> Self:
        for table, build in (("pooled", self.of_pooled), ("local", self.of_local)):
            try:
                build()
            except ValueError as error:
                raise ValueError(f"{table}: {error}") from error
        return self

    def of_merchants(self, changes: OptimizerChanges | None = None) -> TrainerConfig:
        """How merchants train; ``changes``: what differs from [training.merchants]. ValueError as of ``over``."""
        own = self.merchants
        return self._of(own if changes is None else changes.over(own), own.batch_size)

    def of_server(self, optimizer: OptimizerConfig | None = None) -> TrainerConfig:
        """How the server trains; ``optimizer``: another than that of [training.server]."""
        return self._of(optimizer or self.server, self.server.batch_size)

    def of_pooled(self) -> TrainerConfig:
        """How the pooled control trains."""
        return self._of(self.pooled.over(self.server), self.pooled.batch_size or self.server.batch_size)

    def of_local(self) -> TrainerConfig:
        """How each merchant alone trains."""
        return self._of(self.local.over(self.merchants), self.local.batch_size or self.merchants.batch_size)

    def _of(self, optimizer: OptimizerConfig, batch_size: int) -> TrainerConfig:
        shared = {name: getattr(self, name) for name in SharedTrainingConfig.model_fields}
        own = {name: getattr(optimizer, name) for name in OptimizerConfig.model_fields}
        return TrainerConfig(**shared, **own, batch_size=batch_size)
