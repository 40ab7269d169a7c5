"""Configuration of student training, at merchants and at the server."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.tables import (
    BatchSize,
    ConfigTable,
    Epochs,
    Place,
    PositiveFloat,
    PositiveInt,
    Precision,
    Share,
)


class AugmentationConfig(ConfigTable):
    """Augmentation of labelled texts, drawn again before each training: a merchant's round, or one at the server.

    Shares are of the words of a text, or of its characters in languages such as Chinese; ``translated`` of the texts.
    """

    synonyms: Share = Field(0.0, description="share of the words with synonyms that are replaced by one")
    deletion: Share = Field(0.0, description="share of the words that are deleted; at least one remains")
    characters: Share = Field(0.0, description="share of the words in which two adjacent characters are swapped")
    dictionary: Place | None = Field(
        None, description="file with a group of comma-separated synonyms per line; none: built-in shopping words"
    )

    translated: Share = Field(0.0, description="share of the texts that are back-translated before other changes")
    back_translation: tuple[str, ...] = Field(
        default=(),
        description="two translation models, to another language and back: folders, or hub ids with local files. Real "
        "sites do not load models that the server names, and do not back-translate",
    )

    @model_validator(mode="after")
    def _there_and_back(self) -> Self:
        if len(self.back_translation) not in (0, 2):
            raise ValueError("back_translation must be two models, to another language and back")
        if bool(self.translated) != bool(self.back_translation):
            raise ValueError("translated and back_translation require each other: set both, or remove both")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any text is changed."""
        return max(self.synonyms, self.deletion, self.characters, self.translated) > 0


class AdversarialConfig(ConfigTable):
    """Adversarial training with perturbed embeddings of labelled examples, which contribute half of the loss."""

    attack: Literal["none", "fgm", "pgd"] = Field(
        "none", description="none; fgm: one step of length radius; pgd: several steps within radius"
    )
    radius: PositiveFloat = Field(1.0, description="maximum L2 norm of the perturbation of an example's embeddings")
    steps: PositiveInt = Field(3, description="number of steps of pgd")
    step_size: PositiveFloat = Field(0.3, description="length of a step of pgd")


class SharedTrainingConfig(ConfigTable):
    """Settings of all trainings, at merchants and at the server."""

    label_smoothing: Share = Field(0.0, description="share of a label that is distributed uniformly over all classes")
    r_drop: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.0, description="weight of the divergence between two passes with different dropout on labelled examples"
    )
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)
    adversarial: AdversarialConfig = Field(default_factory=AdversarialConfig)
    submodel: bool = Field(True, description="train and send only the embedding rows that a merchant's data use")
    precision: Precision = Field("float32", description="precision of matrix products in a cohort; weights are float32")


class TrainerConfig(SharedTrainingConfig, OptimizerConfig):
    """Settings of one trainer: those of all trainings, its optimizer and its batch size."""

    batch_size: BatchSize = Field(32, description="examples in a batch")


class MerchantsConfig(OptimizerConfig):
    """Training at merchants in federations, in the fedavg control and in their own adaptation."""

    batch_size: BatchSize = Field(32, description="examples in a batch")


class ServerConfig(OptimizerConfig):
    """Training at the server: its student, assistants, and training after a merge."""

    batch_size: BatchSize = Field(128, description="examples in a batch")
    epochs: PositiveFloat = Field(3.0, description="epochs of the server's student before the first round")
    temperature: PositiveFloat = Field(2.0, description="distillation temperature")


def _as_list(value: object) -> object:
    """Return a single number as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _as_written(values: tuple[float, ...]) -> float | list[float]:
    """Return a list of one as a single number."""
    return values[0] if len(values) == 1 else list(values)


class StudentControlConfig(OptimizerChanges):
    """Training on the server's labels only: the control `student`, from which federations with start = 'labels' start.
    Keys that are not set are as in [training.server]."""

    epochs: Annotated[
        tuple[PositiveFloat, ...],
        Field(min_length=1),
        BeforeValidator(_as_list, json_schema_input_type=PositiveFloat | list[PositiveFloat]),
        PlainSerializer(_as_written),
    ] = Field(
        (10.0,),
        description="epochs on the server's labels: too few overstate what the teacher adds. Of several, such as "
        "[10, 30, 100], each is tried in this order for as long as the validation score rises, and the best is kept",
    )

    @model_validator(mode="after")
    def _longer_and_longer(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.epochs)):
            raise ValueError(f"epochs must increase: {', '.join(f'{epochs:g}' for epochs in self.epochs)}")
        return self


class PooledConfig(OptimizerChanges):
    """Control that trains the server's student, after the teacher's soft labels, on everybody's labels; keys that are
    not set are as in [training.server]."""

    learning_rate: PositiveFloat = Field(5e-3, description="peak learning rate, after warm-up")
    batch_size: BatchSize | None = Field(None, description="examples in a batch; none: as in [training.server]")
    epochs: PositiveFloat = Field(5.0, description="epochs on everybody's labels")


class LocalConfig(OptimizerChanges):
    """Control in which each merchant trains the server's student alone; keys that are not set are as in
    [training.merchants]."""

    batch_size: BatchSize | None = Field(None, description="examples in a batch; none: as in [training.merchants]")
    epochs: PositiveFloat = Field(2.0, description="epochs over a merchant's own examples")


class UnlabeledConfig(ConfigTable):
    """Training at merchants on their unlabeled examples (``data.client_labels``), after their labelled ones, on what
    the merchant's student predicts for them before the round: pseudo-labels (FixMatch, Sohn et al., NeurIPS 2020)."""

    epochs: Epochs = Field(
        0.0, description="epochs over a merchant's unlabeled examples per round; 0: they are not used"
    )
    confidence: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.9, description="minimum probability of the predicted class for an example to be used"
    )
    pseudo_labels: Literal["hard", "soft"] = Field(
        "hard",
        description="target: the predicted class (FixMatch), or its probabilities (UDA, Xie et al. 2020). With "
        "[training.augmentation], predictions are on the original text and training is on the augmented one",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not self.epochs:
            self._refuse_idle(["confidence", "pseudo_labels"], "epochs = 0")
        return self


class TrainingConfig(SharedTrainingConfig):
    """Training of students: settings of all trainings, and one table for each training."""

    merchants: MerchantsConfig = Field(default_factory=MerchantsConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)
    student: StudentControlConfig = Field(default_factory=StudentControlConfig)
    pooled: PooledConfig = Field(default_factory=PooledConfig)
    local: LocalConfig = Field(default_factory=LocalConfig)
    unlabeled: UnlabeledConfig = Field(default_factory=UnlabeledConfig)

    @model_validator(mode="after")
    def _changes_go_together(self) -> Self:
        of_student = partial(self.student.over, self.server)
        builders: dict[str, Callable[[], object]] = {
            "student": of_student,
            "pooled": self.of_pooled,
            "local": self.of_local,
        }
        for table, build in builders.items():
            try:
                build()
            except ValueError as error:
                raise ValueError(f"{table}: {error}") from error
        return self

    def of_merchants(self, changes: OptimizerChanges | None = None) -> TrainerConfig:
        """Return the training at merchants.

        :param changes: differences from [training.merchants]
        :raises ValueError: as ``OptimizerChanges.over``
        """
        own = self.merchants
        return self._of(own if changes is None else changes.over(own), own.batch_size)

    def of_server(self, optimizer: OptimizerConfig | None = None) -> TrainerConfig:
        """Return the training at the server; ``optimizer`` replaces that of [training.server]."""
        return self._of(optimizer or self.server, self.server.batch_size)

    def of_pooled(self) -> TrainerConfig:
        """Return the training of the pooled control."""
        return self._of(self.pooled.over(self.server), self.pooled.batch_size or self.server.batch_size)

    def of_local(self) -> TrainerConfig:
        """Return the training of the local control."""
        return self._of(self.local.over(self.merchants), self.local.batch_size or self.merchants.batch_size)

    def _of(self, optimizer: OptimizerConfig, batch_size: int) -> TrainerConfig:
        shared = {name: getattr(self, name) for name in SharedTrainingConfig.model_fields}
        own = {name: getattr(optimizer, name) for name in OptimizerConfig.model_fields}
        return TrainerConfig(**shared, **own, batch_size=batch_size)
