"""An experiment as one typed value: the same in Python, in a TOML file and in a flat Flower run config.

Every table of the file is a class here and every key a field, with its meaning beside it. Parts chosen by
name (dataset, student, method ...) take their own options in an ``options`` table, checked when they are built.
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fed_distill.errors import ConfigError
from fed_distill.toml import first_problem, read_toml

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Control = Literal["server", "local", "pooled", "fedavg"]
CONTROLS: tuple[Control, ...] = ("server", "local", "pooled", "fedavg")
StageTable = str | dict[str, Any]
Transfer = Literal["probabilities", "decisions", "hints", "hidden", "attention", "relations", "ranking"]
PROBABILITIES: tuple[Transfer, ...] = ("probabilities",)
LONGEST_TITLE = 150
"""Bytes of a federation's title in the name of a file."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(_Table):
    """Which examples, and how they are split between server, merchants, validation and test."""

    dataset: str = Field("marketplace", description="name of a dataset, or import path of an own one")
    task: str = Field("relevance", description="relevance, recommend, category, matching, sentiment or faq")
    seed: int = Field(
        0, description="seed of the splits; kept apart from the run's seed, so that seeds share a test set"
    )
    public_share: Share = Field(0.2, description="share of the large enough merchants whose data the server has")
    clients: Literal["here", "elsewhere"] = Field(
        "here",
        description="here: merchants of the data that are not public; elsewhere: those of real sites, which bring data "
        "of their own, and all that is here is public",
    )
    min_rows: PositiveInt = Field(30, description="merchants with fewer rows are not clients; their rows are public")
    valid_share: Share = Field(0.1, description="share of the groups held out for validation")
    test_share: Share = Field(0.2, description="share of the groups held out for the test")
    test_domain: str | None = Field(
        None, description="test on this domain (such as a category) alone, and train on no label of it; none for all"
    )
    proxy_size: PositiveInt = Field(4000, description="examples in the shared, unlabeled proxy set")
    proxy_choice: Literal["random", "coverage", "uncertainty"] = Field(
        "random",
        description="coverage: spread over the texts that there are, by greedy k-center; uncertainty: where the "
        "teacher is least sure",
    )
    proxy_domains: list[str] = Field(
        default_factory=list, description="draw the proxy set from these domains, and train on no label of them"
    )
    proxy_dataset: str | None = Field(
        None, description="draw the proxy set from this dataset, such as the generated marketplace; none for the same"
    )
    proxy_options: dict[str, Any] = Field(default_factory=dict, description="options of that dataset")
    max_characters: PositiveInt = Field(512, description="longer texts are dropped in cleaning")
    max_merchants: PositiveInt | None = Field(None, description="keep only so many clients, the largest; none for all")
    max_examples: PositiveInt | None = Field(None, description="keep only so many examples in each table; none for all")
    partition: Literal["merchant", "dirichlet", "shard", "size"] = Field(
        "merchant",
        description="who owns a row: its merchant column, or a flwr-datasets partitioner where there is none",
    )
    partitions: PositiveInt = Field(20, description="merchants that a partitioner makes")
    concentration: PositiveFloat = Field(0.5, description="Dirichlet concentration; smaller is more skewed")
    options: dict[str, Any] = Field(default_factory=dict, description="the dataset's own options")


class EnsembleMember(_Table):
    """One more teacher: what is different about it; what is not given is as in [teacher]."""

    model: str | None = Field(None, description="another architecture")
    options: dict[str, Any] | None = Field(
        None, description="its own options; none for those of [teacher], of another architecture for its defaults"
    )
    learning_rate: PositiveFloat | None = None
    epochs: PositiveInt | None = None
    seed: int = Field(0, ge=0, description="added to data.seed, which draws its head and the order of its batches")

    @model_validator(mode="after")
    def _differs(self) -> Self:
        if not self.model_dump(exclude_defaults=True):
            raise ValueError("it is the same as the first teacher: give it another model or seed")
        return self


class TeacherConfig(_Table):
    """The model that the server holds, fine-tuned once on the public examples."""

    model: str = Field("bert-small", description="minilm, bert-small, a folder, a hub id, or an import path")
    epochs: PositiveInt = 3
    learning_rate: PositiveFloat = 5e-5
    batch_size: PositiveInt = 32
    max_examples: PositiveInt = Field(20_000, description="public examples used for fine-tuning at most")
    warmup_share: Share = Field(0.1, description="share of the steps in which the rate rises from 0")
    patience: PositiveInt = Field(2, description="validations without improvement before training stops")
    max_length: PositiveInt = Field(64, description="tokens of a text or pair; longer ones are cut")
    masked_epochs: Epochs = Field(
        0.0, description="epochs of guessing hidden words of public and proxy texts before it is fine-tuned"
    )
    masked_learning_rate: PositiveFloat = Field(1e-4, description="learning rate of these epochs")
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

    def members(self) -> list[tuple["TeacherConfig", int]]:
        """Every teacher of the ensemble as one of its own, this one first, and what is added to its seed."""
        alone = self.model_copy(update={"ensemble": [], "domains": 1, "combine": "mean"})
        found = [(alone, 0)]
        for member in self.ensemble:
            changes = member.model_dump(exclude={"seed"}, exclude_none=True)
            if member.model is not None:
                changes.setdefault("options", {})
            found.append((alone.model_copy(update=changes), member.seed))
        return found


class AssistantConfig(_Table):
    """One level between teacher and student: a model that learns from the level above and teaches the one below."""

    model: str = Field("bert-mini", description="name of a student, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the model's own options")
    epochs: PositiveFloat = Field(3.0, description="epochs of labels and of the level above, in turns")
    weight: PositiveFloat = Field(1.0, description="alpha, of its cross-entropy with the level above")


class DistillConfig(_Table):
    """What is transferred from teacher to student wherever the server distils, and over which levels."""

    transfer: Annotated[list[Transfer], Field(min_length=1)] = Field(
        default_factory=lambda: list(PROBABILITIES),
        description="kinds, losses added: probabilities, decisions, hints, hidden, attention, relations, ranking",
    )
    weights: dict[Transfer, PositiveFloat] = Field(
        default_factory=dict, description="weight of a kind in the sum; 1 where none is given"
    )
    hard_weight: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0, description="weight of true labels where there are any; the rest goes to the teacher's soft labels on them"
    )
    final_temperature: PositiveFloat | None = Field(
        None, description="temperature of the last epoch, toward which server_temperature moves; none to stay"
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
        idle = [kind for kind in self.weights if kind not in self.transfer]
        if idle:
            raise ValueError(f"a weight is given to {idle[0]}, which is not in transfer")
        return self


class StudentConfig(_Table):
    """The small model that merchants train."""

    model: str = Field("two-tower", description="name of a student, or import path of an own one")
    options: dict[str, Any] = Field(default_factory=dict, description="the student's own options")
    masked_epochs: Epochs = Field(
        0.0, description="epochs of guessing hidden words of public and proxy texts before the server trains it"
    )
    masked_learning_rate: PositiveFloat = Field(1e-3, description="learning rate of these epochs")
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


class AugmentationConfig(_Table):
    """What is done to labelled texts before a training, a merchant's round or one at the server; drawn anew for each.

    Shares of the words of a text, or of the characters where they are words (Chinese).
    """

    synonyms: Share = Field(0.0, description="replaced by a synonym, of those that have one")
    deletion: Share = Field(0.0, description="left out; one at least stays")
    characters: Share = Field(0.0, description="with two neighbouring characters swapped")
    dictionary: Path | None = Field(
        None, description="groups of synonyms, one a line, separated by commas; none for built-in shopping words"
    )

    @property
    def enabled(self) -> bool:
        """Whether anything is changed."""
        return self.synonyms > 0 or self.deletion > 0 or self.characters > 0


class AdversarialConfig(_Table):
    """Training on labelled examples whose embeddings are moved where the loss rises; half of the loss is theirs."""

    attack: Literal["none", "fgm", "pgd"] = Field("none", description="one step of length radius, or several within it")
    radius: PositiveFloat = Field(1.0, description="largest L2 norm of what is added to an example's embeddings")
    steps: PositiveInt = Field(3, description="of pgd")
    step_size: PositiveFloat = Field(0.3, description="of pgd: length of a step")


class TrainingConfig(_Table):
    """How any phase of any plan is trained, at a merchant and at the server."""

    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="of merchants")
    server_optimizer: Literal["sgd", "adamw"] = Field("adamw", description="of training at the server")
    momentum: Share = Field(0.0, description="of optimizer sgd; adamw has its own")
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
        return self


class TransportConfig(_Table):
    """How messages are made smaller: stages by name, or tables with ``stage`` and its options, applied in their order.

    Nothing is coded by default. Controls never are.
    """

    weights: list[StageTable] = Field(
        default_factory=list, description="of uplinks, as updates: top-k, svd, then sign, int4, int8 or float16"
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


class FederationConfig(_Table):
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
    transport: TransportConfig | None = Field(None, description="how its messages are coded; none for [transport]")
    label: str = Field(
        "", pattern=r"^[^/]*$", description="name in tables and files; the method's and aggregator's names if empty"
    )

    @property
    def title(self) -> str:
        """Name of this federation in tables and folders."""
        return self.label or (self.method if self.aggregator == "fedavg" else f"{self.method}+{self.aggregator}")


class PrivacyConfig(_Table):
    """What the federations promise, to whom, and at what price; controls are trained without.

    The unit says whose presence cannot be told from what is released: one ``example`` of a merchant, or a whole
    ``merchant``. A promise has a target ``epsilon``, for which the noise is found, or a fixed ``noise_multiplier``.
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
        0.6, description="unit vote: share of the merchants that must agree on an answer"
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
    weighting: Literal["examples", "inverse-variance"] = Field(
        "examples",
        description="unit example, aggregator fedavg: what a merchant counts for; inverse-variance: its examples "
        "squared, since its noise falls with them",
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


class AdaptationConfig(_Table):
    """What happens to the global student after the last round."""

    enabled: bool = Field(
        True, description="fine-tune on the server's data, distil again on domain text, fine-tune again"
    )
    epochs: PositiveFloat = Field(1.0, description="epochs of each of the three stages")
    learning_rate_scale: PositiveFloat = Field(0.3, description="factor on training.server_learning_rate")
    unfreeze: bool = Field(
        False, description="fine-tune its last layer first, then with each layer before it, all in the same epochs"
    )
    personal: bool = Field(False, description="also adapt to each merchant; its student stays there")
    personal_epochs: PositiveFloat = Field(1.0, description="epochs of a merchant's own adaptation")


class RuntimeConfig(_Table):
    """Where a run is kept, how it is computed and what follows it; nothing here changes a result but by rounding."""

    folder: Path = Field(Path("runs"), description="runs are kept in FOLDER/NAME")
    resume: bool = Field(False, description="go on with a stopped run of this name")
    cache: Path | None = Field(None, description="teachers and soft labels; default: the user's cache folder")
    sites: PositiveInt = Field(1, description="sites that a run waits for; in process, how many share the merchants")
    trainer: Literal["cohort", "sequential"] = Field(
        "cohort", description="many merchants as one tensor program, or one after another on the CPU"
    )
    cohort: PositiveInt | None = Field(
        None, description="merchants that train together at most; default: 16 on a CPU, on a GPU what fits"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where students are trained; auto: a GPU if any")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="processes that train the merchants, with at least one site each; in process only"
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="threads of one process; default: its share of all cores"
    )
    measure_speed: bool = Field(True, description="time teacher and student on a few pairs, for the report")
    callbacks: list[str] = Field(
        default_factory=lambda: ["progress", "tensorboard"],
        description="what follows a run: progress, tensorboard, wandb, own",
    )


class Experiment(_Table):
    """Everything that a run depends on. ``Experiment.read(path)`` reads a TOML file."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="name of the run and its folder",
    )
    seed: int = Field(0, ge=0, description="seed of the first repeat; repeat k uses seed + k")
    repeats: PositiveInt = Field(1, description="seeds to run; tables give the mean and a 95 % interval")
    controls: list[Control] = Field(
        default_factory=lambda: list(CONTROLS), description="what the method is compared with"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    compare: list[dict[str, Any]] = Field(
        default_factory=list, description="further federations, each a table that overrides [federation]"
    )
    adaptation: AdaptationConfig = Field(default_factory=AdaptationConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    transport: TransportConfig = Field(default_factory=TransportConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

    @model_validator(mode="after")
    def _rates_of_sgd(self) -> Self:
        privacy = self.privacy
        scaled = [key for key in ("rate_scales", "row_rate_power") if getattr(privacy, key)]
        if scaled and privacy.unit == "example":
            if (privacy.optimizer or self.training.optimizer) != "sgd":
                raise ValueError(f"privacy.{scaled[0]} needs optimizer sgd, adamw would undo it: set privacy.optimizer")
            if privacy.row_rate_power and not self.training.submodel:
                raise ValueError("privacy.row_rate_power needs training.submodel, which counts the rows that are used")
        return self

    @model_validator(mode="after")
    def _distinct_federations(self) -> Self:
        titles = [federation.title for federation in self.federations()]
        reserved = {".", "..", "server", "local", "pooled", "personal", *(f"personal of {title}" for title in titles)}
        taken = [
            federation.title
            for federation in self.federations()
            if federation.title in reserved
            or federation.title.startswith(("server.", "control.", "federation.", "level."))
            or (federation.title == "fedavg" and (federation.method, federation.aggregator) != ("fedavg", "fedavg"))
        ]
        if taken:
            raise ValueError(f"a federation cannot be called {taken[0]!r}: give it another `label`")
        long = [title for title in titles if len(quote(title, safe="")) > LONGEST_TITLE]
        if long:
            raise ValueError(f"the federation's name {long[0][:20]!r} ... is too long: give it a shorter `label`")
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two federations are called {sorted(twice)[0]!r}: give one of them a `label`")
        if self.data.valid_share + self.data.test_share >= 1.0:
            raise ValueError("data.valid_share and data.test_share leave nothing to train on")
        if self.data.clients == "elsewhere" and "pooled" in self.controls:
            raise ValueError("data.clients = 'elsewhere' leaves nothing to pool: take 'pooled' out of controls")
        return self

    def federations(self) -> list[FederationConfig]:
        """The main federation first, then each of ``compare``; options are taken over only by the same method."""
        main = self.federation.model_dump()
        result = [self.federation]
        for number, override in enumerate(self.compare, 1):
            inherited = dict(main, label="")
            if override.get("method", main["method"]) != main["method"]:
                inherited["options"] = {}
            if override.get("aggregator", main["aggregator"]) != main["aggregator"]:
                inherited["aggregator_options"] = {}
            try:
                result.append(FederationConfig.model_validate({**inherited, **override}))
            except ValidationError as error:
                raise ValueError(f"table {number} of compare: {first_problem(error)}") from error
        return result

    def arms(self) -> dict[str, FederationConfig]:
        """Everything that merchants are asked to train, by name: the federations, then the controls that need them.

        A federation titled ``fedavg`` is its own control. ``personal of X`` adapts X's global student to each merchant.
        """
        arms = {federation.title: federation for federation in self.federations()}
        kept = {"rounds": self.federation.rounds, "participation": self.federation.participation}
        local_epochs = self.federation.options.get("local_epochs")
        plain = {} if local_epochs is None else {"local_epochs": local_epochs}
        if "fedavg" in self.controls:
            arms.setdefault("fedavg", FederationConfig(method="fedavg", options=plain, **kept))
        alone = {"local_epochs": self.training.local_epochs}
        if "local" in self.controls:
            arms["local"] = FederationConfig(method="local", options=alone, rounds=1)
        if self.adaptation.personal:
            alone = {"local_epochs": self.adaptation.personal_epochs}
            for federation in self.federations():
                name = f"personal of {federation.title}"
                arms[name] = FederationConfig(method="personal", options=alone, rounds=1)
        return arms

    def unit_of(self, arm: str) -> str:
        """Unit of the privacy of an arm: that of federations; ``none`` for controls and for what stays at merchants."""
        private = any(federation.title == arm for federation in self.federations())
        return self.privacy.unit if private else "none"

    def transport_of(self, arm: str) -> TransportConfig:
        """How messages are coded in an arm: federations may have chains of their own; controls have none."""
        for federation in self.federations():
            if federation.title == arm:
                return self.transport if federation.transport is None else federation.transport
        return TransportConfig()

    def training_of(self, arm: str) -> TrainingConfig:
        """How merchants train in an arm: private federations may have an optimizer and a rate of their own."""
        if self.unit_of(arm) == "none":
            return self.training
        optimizer = self.privacy.optimizer or self.training.optimizer
        changes = {
            "optimizer": optimizer,
            "momentum": self.training.momentum if optimizer == "sgd" else 0.0,
            "learning_rate": self.privacy.learning_rate or self.training.learning_rate,
        }
        return self.training.model_copy(update=changes)

    @classmethod
    def parse(cls, tables: Mapping[str, Any], source: str = "experiment") -> Self:
        """Check ``tables``; raise ConfigError naming ``source`` and the first wrong key."""
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error)}") from error

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides`` (dotted keys)."""
        tables = read_toml(path, "experiment")
        for key, value in (overrides or {}).items():
            _set(tables, key, value)
        return cls.parse(tables, str(path))

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with ``changes`` (dotted keys) applied."""
        tables = self.model_dump(mode="json", exclude_none=True)
        for key, value in changes.items():
            _set(tables, key, value)
        return type(self).parse(tables)

    def tiny(self) -> Self:
        """A quick version of the same experiment, for trying a file out: few merchants, a small teacher, two rounds."""
        seeds = [{"seed": number} for number in range(1, len(self.teacher.ensemble) + 1)]
        assistants = [{**one.model_dump(mode="json"), "epochs": 1} for one in self.distill.assistants]
        quick_rounds = [{**table, "rounds": min(2, table.get("rounds", 2))} for table in self.compare]
        return self.with_changes(
            {
                "name": f"{self.name}-tiny",
                "repeats": 1,
                "compare": quick_rounds,
                "data.max_merchants": min(6, self.data.max_merchants or 6),
                "data.proxy_size": min(100, self.data.proxy_size),
                "data.max_examples": min(200, self.data.max_examples or 200),
                "teacher.model": "bert-small",
                "teacher.options": {"layers": 1, "width": 32, "heads": 2},
                "teacher.epochs": 1,
                "teacher.max_examples": 200,
                "teacher.ensemble": seeds,
                "distill.assistants": assistants,
                "training.server_epochs": 1,
                "training.pooled_epochs": 1,
                "training.local_epochs": 1,
                "federation.rounds": min(2, self.federation.rounds),
            }
        )

    def to_toml(self) -> str:
        """The complete experiment as TOML, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """The experiment as a flat Flower run config: dotted keys; lists, option tables and absent values as JSON.

        A text that could be taken for JSON is written as JSON too.
        """
        flat: dict[str, bool | int | float | str] = {}

        def walk(prefix: str, table: BaseModel) -> None:
            dumped = table.model_dump(mode="json")
            for key in type(table).model_fields:
                value = getattr(table, key)
                if isinstance(value, BaseModel):
                    walk(f"{prefix}{key}.", value)
                elif isinstance(value, (list, dict)) or value is None or _looks_like_json(dumped[key]):
                    flat[prefix + key] = json.dumps(dumped[key])
                else:
                    flat[prefix + key] = dumped[key]

        walk("", self)
        return flat

    @classmethod
    def from_run_config(cls, flat: Mapping[str, Any]) -> Self:
        """Inverse of ``to_run_config``."""
        tables: dict[str, Any] = {}
        for key, value in flat.items():
            if _looks_like_json(value):
                try:
                    value = json.loads(value)
                except json.JSONDecodeError as error:
                    raise ConfigError(f"run config key {key!r} is not valid JSON: {error}") from error
            if value is not None:
                _set(tables, key, value)
        return cls.parse(tables, "run config")


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value`` as on the command line; the value is TOML, or a plain string."""
    key, separator, value = text.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set wants key=value, for example federation.rounds=3, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _set(tables: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a table")
    tables[last] = value


def _looks_like_json(value: Any) -> bool:
    return isinstance(value, str) and (value == "null" or value.startswith(("[", "{", '"')))
