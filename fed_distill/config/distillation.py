"""Configuration of teachers, distillation and students."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import GradientNorm, OptimizerChanges, OptimizerConfig, WeightDecay
from fed_distill.config.tables import ConfigTable, Count, Epochs, PositiveFloat, PositiveInt, Precision, Seed, Share

Transfer = Literal[
    "probabilities",
    "decoupled",
    "correlation",
    "decisions",
    "hints",
    "hidden",
    "attention",
    "embeddings",
    "relations",
    "ranking",
    "listwise",
    "contrastive",
]
PROBABILITIES: tuple[Transfer, ...] = ("probabilities",)
SOFTENED: tuple[Transfer, ...] = ("probabilities", "decoupled", "correlation")
"""Kinds of transfer that soften logits with the temperature."""


class MaskedConfig(OptimizerConfig):
    """Pretraining with masked language modelling on public and proxy texts, before all other training."""

    epochs: Epochs = Field(0.0, description="epochs over these texts; 0: no pretraining")
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate, after warm-up")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    clip_norm: GradientNorm = Field(1.0, description="maximum L2 norm of a gradient; inf: no clipping")


class StudentMaskedConfig(MaskedConfig):
    """Pretraining of students, with a higher default learning rate."""

    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate, after warm-up")


class EnsembleMember(OptimizerChanges):
    """A further teacher: its differences from [teacher]."""

    model: str | None = Field(None, description="model of this teacher; none: as in [teacher]")
    options: dict[str, Any] | None = Field(
        None, description="options of the model; none: as in [teacher], or the defaults of another model"
    )
    epochs: Count | None = Field(None, description="epochs of fine-tuning; none: as in [teacher]; 0: none")
    steps: Count | None = Field(None, description="steps of fine-tuning, instead of epochs; none: as in [teacher]")
    seed: Seed = Field(0, description="added to data.seed, for the initial head and the order of batches")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("this teacher equals the first one: set another model or seed")
        _check_one_budget(self.epochs, self.steps)
        return self


class TeacherConfig(OptimizerConfig):
    """The server's model, fine-tuned once on the public examples."""

    model: str = Field(
        "bert-small",
        description="minilm, bert-small, history-tower, labels-file, meta-learner (of campaigns), a folder, a hub id "
        "or an import path",
    )
    epochs: Count | None = Field(
        None,
        description="maximum number of epochs of fine-tuning; none: 3, or 0 for a model that predicts without "
        "(a causal language model, a file); 0: no fine-tuning",
    )
    steps: Count | None = Field(
        None, description="maximum number of optimizer steps of fine-tuning, instead of epochs; 0: no fine-tuning"
    )
    checks: PositiveInt | None = Field(
        None, description="number of validations, spread evenly over the training; none: two an epoch, 20 with steps"
    )
    learning_rate: PositiveFloat = Field(5e-5, description="peak learning rate, after warm-up")
    batch_size: PositiveInt = Field(32, description="examples in a batch")
    max_examples: PositiveInt = Field(20_000, description="maximum number of public examples used for fine-tuning")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    weight_decay: WeightDecay = Field(
        0.01, description="weight decay of matrices; not applied to embedding tables, biases and norms"
    )
    clip_norm: GradientNorm = Field(1.0, description="maximum L2 norm of a gradient; inf: no clipping")
    patience: PositiveInt | None = Field(
        None,
        description="validations without improvement before training stops; none: 2, or no early stopping with steps",
    )
    max_length: PositiveInt = Field(64, description="maximum number of tokens of a text or pair; the rest is truncated")
    precision: Precision = Field(
        "float32",
        description="precision of matrix products in fine-tuning and labelling; bfloat16 is about twice as fast on "
        "CPUs with AVX-512 BF16 or AMX, and slower on others",
    )
    masked: MaskedConfig = Field(default_factory=MaskedConfig)
    options: dict[str, Any] = Field(default_factory=dict, description="options of the model")
    ensemble: list[EnsembleMember] = Field(
        default_factory=list, description="further teachers, which differ in model or seed"
    )
    domains: PositiveInt = Field(
        1, description="number of groups of public merchants; every teacher is fine-tuned on each group separately"
    )
    combine: Literal["mean", "confidence", "similarity"] = Field(
        "mean",
        description="weights of several teachers per example: mean: equal; confidence: by their confidence; "
        "similarity: by the similarity to their training examples",
    )

    @model_validator(mode="after")
    def _combines_several(self) -> Self:
        _check_one_budget(self.epochs, self.steps)
        if self.precision != "float32" and self.model == "labels-file" and not self.ensemble:
            raise ValueError(f"precision = {self.precision!r} has no effect on a file of labels: remove it")
        members = self.members()  # raises ValueError for inconsistent changes
        if any(one in members[:place] for place, one in enumerate(members)):
            raise ValueError("ensemble has a teacher twice: set another model or seed, or remove it")
        if self.combine != "mean" and not self.ensemble and self.domains == 1:
            raise ValueError(
                f"combine = {self.combine!r} requires several teachers: set ensemble or domains, or remove combine"
            )
        if self.combine == "similarity" and self.domains == 1:
            raise ValueError(
                "combine = 'similarity' weights teachers by their training examples, which are identical without "
                "domains: set domains, or combine = 'confidence'"
            )
        return self

    def members(self) -> list[tuple["TeacherConfig", int]]:
        """Return all teachers as separate configurations, this one first, each with its offset to the seed."""
        alone = self.model_copy(update={"ensemble": [], "domains": 1, "combine": "mean"})
        found = [(alone, 0)]
        for member in self.ensemble:
            own = {name: getattr(member, name) for name in ("model", "options", "epochs", "steps")}
            changes = {name: value for name, value in own.items() if value is not None}
            if changes.keys() & {"epochs", "steps"}:  # either replaces the budget of [teacher]
                changes = {"epochs": None, "steps": None, **changes}
            if member.model is not None:
                changes.setdefault("options", {})
            changes |= dict(member.over(self))
            found.append((alone.model_copy(update=changes), member.seed))
        return found


def _check_one_budget(epochs: int | None, steps: int | None) -> None:
    if epochs is not None and steps is not None:
        raise ValueError("epochs and steps are two budgets of one training: remove one")


class AssistantConfig(ConfigTable):
    """One level between teacher and student, distilled from the level above."""

    model: str = Field("bert-mini", description="name of a student, or import path of a custom one")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the model")
    epochs: PositiveFloat = Field(3.0, description="epochs on labels and on the level above, alternating")
    weight: PositiveFloat = Field(1.0, description="weight alpha of the cross-entropy with the level above")


class DistillConfig(ConfigTable):
    """Distillation at the server: the transferred quantities and the levels between teacher and student."""

    transfer: list[Transfer] = Field(
        default_factory=lambda: list(PROBABILITIES),
        description="kinds of transfer, whose losses are summed: probabilities, decoupled (DKD), correlation (of DIST, "
        "over classes), decisions, hints, hidden, attention, embeddings, relations, ranking, listwise, contrastive; "
        "empty: distil the student from the last assistant only",
    )
    weights: dict[Transfer, PositiveFloat] = Field(
        default_factory=dict, description="weight of each kind in the sum; default 1"
    )
    standardize: bool = Field(
        False, description="replace logits by their z-scores before the temperature (logit standardization)"
    )
    decoupled_beta: PositiveFloat = Field(
        1.0,
        description="decoupled: weight of the divergence among the classes that are not the teacher's decision; the "
        "paper has 0.5 to 8",
    )
    list_temperature: PositiveFloat = Field(
        1.0, description="listwise: temperature of the scores, log-odds of the expected gain"
    )
    hard_weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0,
        description="weight of true labels on labelled examples; the remaining weight is on the soft labels of the "
        "teacher, or of the assistant above an assistant; half and half changed nothing where it was measured",
    )
    final_temperature: PositiveFloat | None = Field(
        None, description="temperature of the last epoch, annealed from that of [training.server]; none: constant"
    )
    assistants: list[AssistantConfig] = Field(
        default_factory=list, description="levels between teacher and student, the one below the teacher first"
    )
    assistant_weight: PositiveFloat = Field(
        1.0, description="weight alpha of the student's cross-entropy with the last assistant"
    )

    @model_validator(mode="after")
    def _each_kind_once(self) -> Self:
        twice = [kind for kind in self.transfer if self.transfer.count(kind) > 1]
        if twice:
            raise ValueError(f"transfer names {twice[0]} twice")
        if not self.transfer and not self.assistants:
            raise ValueError("transfer is empty: add a kind, or assistants to distil the student from the last one")
        if not self.transfer and self.hard_weight < 1.0:
            raise ValueError(
                "hard_weight below 1 requires the teacher's labels, which an empty transfer excludes: set hard_weight "
                "= 1, or add a kind to transfer"
            )
        softened = set(self.transfer) & set(SOFTENED) or self.assistants or self.hard_weight < 1.0
        effective = {
            "final_temperature": softened,
            "standardize": softened,
            "decoupled_beta": "decoupled" in self.transfer,
            "list_temperature": "listwise" in self.transfer,
        }
        self._refuse_idle([key for key, used in effective.items() if not used], f"transfer = {self.transfer}")
        if not self.assistants:
            self._refuse_idle(["assistant_weight"], "no assistants")
        idle = [kind for kind in self.weights if kind not in self.transfer]
        if idle:
            raise ValueError(f"weights has {idle[0]}, which is not in transfer: remove it, or add it to transfer")
        return self


class StudentConfig(ConfigTable):
    """The small model that merchants train."""

    model: str = Field("two-tower", description="name of a student, or import path of a custom one")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the student")
    masked: StudentMaskedConfig = Field(default_factory=StudentMaskedConfig)
    by_merchant: list[str] = Field(
        default_factory=list,
        description="students assigned to the merchants in turn, if the method supports it; the global one is `model`",
    )

    def models(self) -> list[str]:
        """Return all student models in use, the global one first."""
        return [self.model, *(name for name in dict.fromkeys(self.by_merchant) if name != self.model)]

    def options_of(self, model: str) -> dict[str, Any]:
        """Return the options of a student model: ``options`` for the global one, defaults for others."""
        return self.options if model == self.model else {}
