"""How students are trained, at merchants and at the server."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.tables import BatchSize, ConfigTable, Place, PositiveFloat, PositiveInt, Share

MERCHANTS_PACE = ("optimizer", "momentum", "learning_rate", "batch_size")
"""Keys of ``[training]`` that are the merchants' alone: another value changes nothing that the server trains."""


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


class TrainingConfig(ConfigTable):
    """How any phase of any plan is trained, at a merchant and at the server."""

    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="of merchants")
    server_optimizer: Literal["sgd", "adamw"] = Field("adamw", description="of training at the server")
    momentum: Share = Field(0.0, description="of optimizer sgd; adamw has its own")
    server_momentum: Share = Field(0.0, description="of server_optimizer sgd")
    learning_rate: PositiveFloat = 3e-3
    batch_size: BatchSize = 32
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.0, description="of adamw decoupled, of sgd part of the gradient; not applied to embedding tables"
    )
    clip_norm: PositiveFloat | None = Field(None, description="largest L2 norm of a gradient; none for no clipping")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="how the rate falls to 0: within one training at the server, over the rounds at merchants",
    )
    warmup_share: Share = Field(0.0, description="share of that time in which the rate rises from 0 first")
    server_epochs: PositiveFloat = Field(3.0, description="epochs of the server's student before the first round")
    pooled_epochs: PositiveFloat = Field(4.0, description="epochs of the pooled control, from the server's student")
    local_epochs: PositiveFloat = Field(2.0, description="epochs of each merchant alone in the local control")
    server_batch_size: BatchSize = Field(128, description="batch size of training at the server, pooled included")
    server_learning_rate: PositiveFloat = Field(3e-3, description="learning rate of training at the server")
    pooled_learning_rate: PositiveFloat = Field(5e-3, description="learning rate of the pooled control")
    server_temperature: PositiveFloat = Field(2.0, description="distillation temperature of training at the server")
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

    @model_validator(mode="after")
    def _momentum_of_sgd(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer sgd, {self.optimizer} has its own: drop momentum or take sgd")
        if self.server_momentum and self.server_optimizer != "sgd":
            raise ValueError(
                f"server_momentum is for server_optimizer sgd, {self.server_optimizer} has its own: drop it or take sgd"
            )
        return self
