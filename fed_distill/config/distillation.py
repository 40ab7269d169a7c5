"""Teachers, what they pass on, and students."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fed_distill.config.optimizer import GradientNorm, OptimizerChanges, OptimizerConfig, WeightDecay
from fed_distill.config.tables import ConfigTable, Epochs, PositiveFloat, PositiveInt, Seed, Share

Transfer = Literal["probabilities", "decisions", "hints", "hidden", "attention", "relations", "ranking", "listwise"]
PROBABILITIES: tuple[Transfer, ...] = ("probabilities",)


class MaskedConfig(OptimizerConfig):
    """Guessing hidden words of public and proxy texts, before anything else is trained."""

    epochs: Epochs = Field(0.0, description="epochs over these texts; 0 for none")
    learning_rate: PositiveFloat = Field(1e-4, description="the highest, after warm-up")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    clip_norm: GradientNorm = Field(1.0, description="largest L2 norm of a gradient; inf for no clipping")


class StudentMaskedConfig(MaskedConfig):
    """The same for students, whose rate is higher."""

    learning_rate: PositiveFloat = Field(1e-3, description="the highest, after warm-up")


class EnsembleMember(OptimizerChanges):
    """One more teacher: what is different about it; what is not given is as in [teacher]."""

    model: str | None = Field(None, description="another architecture")
    options: dict[str, Any] | None = Field(
        None, description="its own options; none for those of [teacher], of another architecture for its defaults"
    )
    epochs: PositiveInt | None = None
    seed: Seed = Field(0, description="added to data.seed, which draws its head and the order of its batches")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("it is the same as the first teacher: give it another model or seed")
        return self


class TeacherConfig(OptimizerConfig):
    """The model that the server holds, fine-tuned once on the public examples."""

    model: str = Field("bert-small", description="minilm, bert-small, a folder, a hub id, or an import path")
    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = Field(5e-5, description="the highest, after warm-up")
    batch_size: PositiveInt = 32
    max_examples: PositiveInt = Field(20_000, description="public examples used for fine-tuning at most")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    weight_decay: WeightDecay = Field(
        0.01, description="of matrices; not applied to embedding tables, biases and norms"
    )
    clip_norm: GradientNorm = Field(1.0, description="largest L2 norm of a gradient; inf for no clipping")
    patience: PositiveInt = Field(2, description="validations without improvement before training stops")
    max_length: PositiveInt = Field(64, description="tokens of a text or pair; longer ones are cut")
    masked: MaskedConfig = Field(default_factory=MaskedConfig)
    options: dict[str, Any] = Field(default_factory=dict, description="the model's own options")
    ensemble: list[EnsembleMember] = Field(
        default_factory=list, description="further teachers beside this one, by architecture or by seed"
    )
    domains: PositiveInt = Field(
        1, description="groups of public merchants; each has every teacher fine-tuned on its own examples"
    )
    combine: Literal["mean", "confidence", "similarity"] = Field(
        "mean",
        description="weights of several teachers on an example: equal, by how sure they are, or by how near their own "
        "examples are",
    )

    @model_validator(mode="after")
    def _combines_several(self) -> Self:
        members = self.members()  # ValueError for one whose changes do not go together
        if any(one in members[:place] for place, one in enumerate(members)):
            raise ValueError("ensemble has a teacher twice, which would count double: give it another model or seed")
        if self.combine != "mean" and not self.ensemble and self.domains == 1:
            raise ValueError(f"combine = {self.combine!r} is of several teachers: give ensemble or domains, or drop it")
        if self.combine == "similarity" and self.domains == 1:
            raise ValueError(
                "combine = 'similarity' weighs teachers by the examples that each was fine-tuned on, which without "
                "domains are the same: give domains, or combine by confidence"
            )
        return self

    def members(self) -> list[tuple["TeacherConfig", int]]:
        """Every teacher of the ensemble as one of its own, this one first, and what is added to its seed."""
        alone = self.model_copy(update={"ensemble": [], "domains": 1, "combine": "mean"})
        found = [(alone, 0)]
        for member in self.ensemble:
            own = {name: getattr(member, name) for name in ("model", "options", "epochs")}
            changes = {name: value for name, value in own.items() if value is not None}
            if member.model is not None:
                changes.setdefault("options", {})
            changes |= dict(member.over(self))
            found.append((alone.model_copy(update=changes), member.seed))
        return found


class AssistantConfig(ConfigTable):
    """One level between teacher and student: a model that learns from the level above and teaches the one below."""

    model: str = Field("bert-mini", description="name of a student, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the model's own options")
    epochs: PositiveFloat = Field(3.0, description="epochs of labels and of the level above, in turns")
    weight: PositiveFloat = Field(1.0, description="alpha, of its cross-entropy with the level above")


class DistillConfig(ConfigTable):
    """What is transferred from teacher to student wherever the server distils, and over which levels."""

    transfer: list[Transfer] = Field(
        default_factory=lambda: list(PROBABILITIES),
        description="kinds, losses added: probabilities, decisions, hints, hidden, attention, relations, ranking, "
        "listwise; none for a student that hears its last assistant alone",
    )
    weights: dict[Transfer, PositiveFloat] = Field(
        default_factory=dict, description="weight of a kind in the sum; 1 where none is given"
    )
    hard_weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0,
        description="weight of true labels where there are any; the rest goes to the soft labels on them of the "
        "teacher, or of the assistant above an assistant",
    )
    final_temperature: PositiveFloat | None = Field(
        None, description="temperature of the last epoch, toward which that of [training.server] moves; none to stay"
    )
    assistants: list[AssistantConfig] = Field(
        default_factory=list, description="levels between teacher and student, the one below the teacher first"
    )
    assistant_weight: PositiveFloat = Field(
        1.0, description="alpha, of the student's cross-entropy with the last assistant"
    )

    @model_validator(mode="after")
    def _each_kind_once(self) -> Self:
        twice = [kind for kind in self.transfer if self.transfer.count(kind) > 1]
        if twice:
            raise ValueError(f"transfer names {twice[0]} twice")
        if not self.transfer and not self.assistants:
            raise ValueError("transfer is empty: name a kind, or assistants, of which the student hears the last alone")
        if not self.transfer and self.hard_weight < 1.0:
            raise ValueError("hard_weight below 1 asks for the teacher's labels, which an empty transfer leaves out")
        if self.final_temperature is not None and not (
            "probabilities" in self.transfer or self.assistants or self.hard_weight < 1.0
        ):
            raise ValueError(
                f"final_temperature is of soft labels, of which transfer = {self.transfer} asks none: drop it"
            )
        idle = [kind for kind in self.weights if kind not in self.transfer]
        if idle:
            raise ValueError(f"a weight is given to {idle[0]}, which is not in transfer")
        return self


class StudentConfig(ConfigTable):
    """The small model that merchants train."""

    model: str = Field("two-tower", description="name of a student, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the student's own options")
    masked: StudentMaskedConfig = Field(default_factory=StudentMaskedConfig)
    by_merchant: list[str] = Field(
        default_factory=list,
        description="students dealt to the merchants in turn, if the method allows it; the global one stays `model`",
    )

    def models(self) -> list[str]:
        """Every kind of student in use, the global one first."""
        return [self.model, *(name for name in dict.fromkeys(self.by_merchant) if name != self.model)]

    def options_of(self, model: str) -> dict[str, Any]:
        """Options of one kind of student: ``options`` for the global one, defaults for others."""
        return self.options if model == self.model else {}
