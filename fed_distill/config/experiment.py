"""An experiment as one typed value, in Python, in a TOML file and in a Flower run config.

Every table of the file is a class, and every key a field with a description. Parts that are chosen by name (dataset,
student, method ...) have their own options in an ``options`` table, which is validated when they are built.
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fed_distill.config.byzantine import ByzantineConfig
from fed_distill.config.controls import DEFAULT_CONTROLS, OF_ALL_DATA, ROWS, Control
from fed_distill.config.data import DataConfig
from fed_distill.config.distillation import DistillConfig, StudentConfig, TeacherConfig
from fed_distill.config.federation import INTAKE, AdaptationConfig, FederationConfig, TransportConfig
from fed_distill.config.optimizer import OptimizerChanges, OptimizerConfig
from fed_distill.config.privacy import (
    UNPROTECTED,
    NoPrivacy,
    Privacy,
    ProtectedConfig,
    is_protected,
    table_of_unit,
)
from fed_distill.config.renamed import check_renamed
from fed_distill.config.runtime import RuntimeConfig
from fed_distill.config.settings import set_key
from fed_distill.config.tables import ConfigTable, PositiveInt, Seed
from fed_distill.config.toml import as_name, check_kind, first_problem, read_toml
from fed_distill.config.training import TrainerConfig, TrainingConfig
from fed_distill.errors import ConfigError

TINY = "-tiny"
"""How the name of an experiment's tiny version ends."""


class Experiment(ConfigTable):
    """The complete configuration of a run. ``Experiment.read(path)`` reads a TOML file."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="name of the run and its folder; without it, the name of the file",
    )
    seed: Seed = Field(0, description="seed of the first repeat; repeat k uses seed + k")
    repeats: PositiveInt = Field(1, description="number of seeds; tables show the mean and a 95 % interval")
    controls: list[Control] = Field(
        default_factory=lambda: list(DEFAULT_CONTROLS),
        description="baselines to compare with: student, server, local, pooled, fedavg, oracle-proxy",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    student: StudentConfig = Field(default_factory=StudentConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    compare: list[dict[str, Any]] = Field(
        default_factory=list, description="further federations, each a table of changes to [federation]"
    )
    adaptation: AdaptationConfig = Field(default_factory=AdaptationConfig)
    privacy: Privacy = Field(default_factory=NoPrivacy)
    byzantine: ByzantineConfig = Field(default_factory=ByzantineConfig)
    transport: TransportConfig = Field(default_factory=TransportConfig)
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig)

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, tables: Any) -> Any:
        if isinstance(tables, Mapping):
            check_renamed(tables)
            for number, table in enumerate(_as_tables(tables.get("compare")), 1):
                try:
                    check_renamed(table, "federation")
                except ValueError as error:
                    raise ValueError(f"table {number} of compare: {error}") from error
        return tables

    @model_validator(mode="after")
    def _temperature_has_time_to_move(self) -> Self:
        if self.distill.final_temperature is None or self.adaptation.enabled:  # adaptation uses the final temperature
            return self
        epochs = [self.training.server.epochs, *(assistant.epochs for assistant in self.distill.assistants)]
        if max(epochs) <= 1:
            raise ValueError(
                "distill.final_temperature requires several epochs: set training.server.epochs above 1, or replace it "
                "by training.server.temperature"
            )
        return self

    @model_validator(mode="after")
    def _optimizers_go_together(self) -> Self:
        changed: list[tuple[str, OptimizerChanges, OptimizerConfig]] = [
            ("adaptation", self.adaptation, self.training.server)
        ]
        if isinstance(self.privacy, ProtectedConfig):
            changed.append(("privacy.training", self.privacy.training, self.training.merchants))
        for table, changes, base in changed:
            try:
                changes.over(base)
            except ValueError as error:
                raise ValueError(f"{table}: {error}") from error
        return self

    @model_validator(mode="after")
    def _distinct_federations(self) -> Self:
        titles = [federation.title for federation in self.federations()]
        for federation in self.federations():
            title = federation.title
            if title in ROWS or (title == "fedavg" and federation.method != "fedavg"):
                raise ValueError(
                    f"a federation cannot be called {title!r}, which is another row's name in the tables of results: "
                    "set another `label`"
                )
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two federations are called {sorted(twice)[0]!r}: set another `label` for one of them")
        if self.data.valid_share + self.data.test_share >= 1.0:
            raise ValueError("data.valid_share and data.test_share leave no training data: their sum must be below 1")
        pooling = [name for name in OF_ALL_DATA if name in self.controls]
        if self.data.clients == "elsewhere" and pooling:
            raise ValueError(
                f"control {pooling[0]!r} requires the clients' data, which data.clients = 'elsewhere' excludes: remove "
                f"{pooling[0]!r} from controls"
            )
        return self

    @model_validator(mode="after")
    def _control_as_it_is(self) -> Self:
        named = "fedavg" in self.controls and self._compares("fedavg")
        if named and self.arms()["fedavg"].start != "labels":
            raise ValueError(
                "a federation called 'fedavg' is also the control of that name, which has no teacher: set start = "
                "'labels' for it, or another `label`, or remove 'fedavg' from controls"
            )
        if named and (self.privacy.protects or self.transport_of("fedavg") != TransportConfig()):
            raise ValueError(
                "a federation called 'fedavg' is also the control of that name, which has neither privacy nor "
                "compression: set another `label`, or remove 'fedavg' from controls"
            )
        return self

    @model_validator(mode="after")
    def _byzantine_in_simulations(self) -> Self:
        if not self.byzantine.fraction:
            return self
        if self.data.clients == "elsewhere":
            raise ValueError(
                "[byzantine] is for simulations, but data.clients = 'elsewhere' has real merchants: remove [byzantine]"
            )
        if "fedavg" in self.controls and self.is_byzantine("fedavg"):
            raise ValueError(
                "a federation called 'fedavg' is also the control of that name, which has no Byzantine merchants: set "
                "another `label`, or remove 'fedavg' from controls"
            )
        return self

    def federations(self) -> list[FederationConfig]:
        """Return the main federation and those of ``compare``, which inherit options for the same method only."""
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
                raise ValueError(f"table {number} of compare: {first_problem(error, FederationConfig)}") from error
        return result

    def arms(self) -> dict[str, FederationConfig]:
        """Return all arms that train at merchants, by name: the federations, then controls and personal adaptations.

        A federation titled ``fedavg`` is its own control; otherwise the control aggregates as the main federation. The
        ``personal_arm`` of a federation adapts its global student at each merchant.
        """
        arms = {federation.title: federation for federation in self.federations()}
        intake = {key: getattr(self.federation, key) for key in INTAKE}
        same = ("rounds", "participation", "validate_every", "patience")
        kept = {**{key: getattr(self.federation, key) for key in same}, **intake}
        local_epochs = self.federation.options.get("local_epochs")
        plain = {} if local_epochs is None else {"local_epochs": local_epochs}
        if "fedavg" in self.controls:
            averaging = {key: getattr(self.federation, key) for key in ("aggregator", "aggregator_options")}
            control = FederationConfig(method="fedavg", options=plain, start="labels", **averaging, **kept)
            arms.setdefault("fedavg", control)
        alone = {"local_epochs": self.training.local.epochs}
        if "local" in self.controls:
            arms["local"] = FederationConfig(method="local", options=alone, rounds=1, **intake)
        if self.adaptation.personal:
            alone = {"local_epochs": self.adaptation.personal_epochs}
            for federation in self.federations():
                arm = FederationConfig(method="personal", options=alone, rounds=1, **intake)
                arms[personal_arm(federation.title)] = arm
        return arms

    def settings_of(self, arm: str) -> dict[str, Any]:
        """Return all settings that affect the merchants' releases in an arm, JSON-ready: without names, folders, and
        the server's rules for accepting uplinks."""
        tables = self.model_dump(mode="json", exclude={"runtime", "name", "seed", "repeats", "compare", "controls"})
        for key in ("ledger", "limits"):
            del tables["privacy"][key]
        tables["federation"] = self.arms()[arm].model_dump(mode="json", exclude=set(INTAKE))
        return tables

    def unit_of(self, arm: str) -> str:
        """Return the privacy unit of an arm: ``none`` for controls and personal adaptations."""
        return self.privacy.unit if self._compares(arm) else UNPROTECTED

    def protects(self, arm: str) -> bool:
        """Whether an arm has a differential privacy guarantee."""
        return is_protected(self.unit_of(arm))

    @property
    def reports_scores(self) -> bool:
        """Whether merchants report their number of correctly classified test examples."""
        return self.privacy.reports_scores

    def is_byzantine(self, arm: str) -> bool:
        """Whether an arm has Byzantine merchants: federations only, not controls or personal adaptations."""
        return self.byzantine.fraction > 0.0 and self._compares(arm)

    def _compares(self, arm: str) -> bool:
        return any(federation.title == arm for federation in self.federations())

    def transport_of(self, arm: str) -> TransportConfig:
        """Return the compression of messages in an arm; controls have none."""
        for federation in self.federations():
            if federation.title == arm:
                return self.transport if federation.transport is None else federation.transport
        return TransportConfig()

    def training_of(self, arm: str) -> TrainerConfig:
        """Return the training at merchants in an arm, with ``[privacy.training]`` for private federations."""
        if arm == "local":
            return self.training.of_local()
        return self.training.of_merchants(self.promise.training if self.protects(arm) else None)

    @property
    def promise(self) -> ProtectedConfig:
        """``[privacy]`` of a private experiment."""
        assert isinstance(self.privacy, ProtectedConfig)
        return self.privacy

    @classmethod
    def parse(cls, tables: Mapping[str, Any], source: str = "experiment") -> Self:
        """Validate ``tables``; raise ConfigError with ``source`` and the first invalid key."""
        try:
            return cls.model_validate(tables)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error, cls)}") from error

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides`` (dotted keys); without a name it is called as the file."""
        tables = read_toml(path, "experiment")
        check_kind(tables, path, "experiment")
        tables.setdefault("name", as_name(Path(path).stem))
        for key, value in (overrides or {}).items():
            set_key(tables, key, value)
        return cls.parse(tables, str(path))

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """Return a validated copy with ``changes`` (dotted keys). If ``privacy.unit`` changes, keys of ``[privacy]``
        that the new unit does not have are removed."""
        tables = self.model_dump(mode="json", exclude_none=True)
        unit = changes.get("privacy.unit", self.privacy.unit)
        if unit != self.privacy.unit:
            known = table_of_unit(unit).model_fields.keys() - {"options"}
            tables["privacy"] = {key: value for key, value in tables["privacy"].items() if key in known}
        for key, value in changes.items():
            set_key(tables, key, value)
        return type(self).parse(tables)

    def tiny(self, kept: Collection[str] = ()) -> Self:
        """Return a fast version of the experiment for trying a file: few merchants, a small teacher, two rounds.

        Its name ends in ``-tiny``, to which the command line may add a number, so that it does not share a folder with
        the whole experiment.

        :param kept: dotted keys that do not change, for example those that a user has set; either of the teacher's
            ``model`` and ``options`` keeps both, as does either of its ``epochs`` and ``steps``
        """
        seeds = [{"seed": number} for number in range(1, len(self.teacher.ensemble) + 1)]
        assistants = [{**one.model_dump(mode="json"), "epochs": 1} for one in self.distill.assistants]
        compared = zip(self.compare, self.federations()[1:], strict=True)
        quick_rounds = [
            {**table, "rounds": min(2, federation.rounds)} if "rounds" in table else table
            for table, federation in compared
        ]
        quick = {
            "repeats": 1,
            "compare": quick_rounds,
            "data.max_merchants": min(6, self.data.max_merchants or 6),
            "data.proxy_size": min(100, self.data.proxy_size),
            "data.max_examples": min(200, self.data.max_examples or 200),
            "teacher.model": "bert-small",
            "teacher.options": {"layers": 1, "width": 32, "heads": 2},
            "teacher.epochs": 1,
            "teacher.steps": None,
            "teacher.max_examples": 200,
            "teacher.ensemble": seeds,
            "distill.assistants": assistants,
            "training.server.epochs": 1 if self.distill.final_temperature is None else 2,
            "training.student.epochs": 1,
            "training.pooled.epochs": 1,
            "training.local.epochs": 1,
            "federation.rounds": min(2, self.federation.rounds),
        }
        stays = {key for key in quick if any(_overlap(key, one) for one in kept)}
        for pair in ({"teacher.model", "teacher.options"}, {"teacher.epochs", "teacher.steps"}):
            stays |= pair if stays & pair else set()
        changes = {key: value for key, value in quick.items() if key not in stays}
        return self.with_changes({"name": f"{self.name}{TINY}", **changes})

    def to_toml(self) -> str:
        """Return the complete experiment as TOML, with defaults."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """Return the experiment as a Flower run config: its TOML text as ``experiment``, an empty ``set``."""
        return {"experiment": self.to_toml(), "set": ""}

    @classmethod
    def from_run_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the experiment of a run config: TOML text in ``experiment``, and changes in ``set``, as comma-separated
        dotted keys with TOML values (``federation.rounds = 3, name = "quick"``).

        :raises ConfigError: invalid text, setting or key
        """
        odd = config.keys() - {"experiment", "set"}
        if odd:
            raise ConfigError(
                f"unknown run config key {sorted(odd)[0]!r}: change settings with set, for example "
                "--run-config 'set=\"federation.rounds = 3\"'"
            )
        found = _of_run_config(str(config.get("experiment", "")), str(config.get("set", "")))
        return cls.parse(found, "run config")


def _as_tables(value: Any) -> list[Mapping[str, Any]]:
    """Return the tables of a list; other values are left to pydantic's validation."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _of_run_config(text: str, settings: str) -> dict[str, Any]:
    """Parse the tables of a run config."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"run config key experiment is not valid TOML: {error}") from error
    try:
        changes = tomllib.loads(f"set = {{{settings}}}")["set"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f'run config key set must be like `federation.rounds = 3, name = "quick"`: {error}'
        ) from error
    return _merged(tables, changes)


def _merged(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``changes`` into a copy of ``tables``, recursively."""
    merged = dict(tables)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def personal_arm(title: str) -> str:
    """Return the arm in which merchants adapt a federation's student. Titles have no slash, so it is not a title."""
    return f"{title}/personal"


def _overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are equal, or one is a table that contains the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
