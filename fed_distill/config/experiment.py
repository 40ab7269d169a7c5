"""An experiment as one typed value: the same in Python, in a TOML file and in a flat Flower run config.

Every table of the file is a class here and every key a field, with its meaning beside it. Parts chosen by
name (dataset, student, method ...) take their own options in an ``options`` table, checked when they are built.
"""

import tomllib
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fed_distill.config.byzantine import ByzantineConfig
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
from fed_distill.config.tables import ConfigTable, PositiveInt, Seed
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.config.training import TrainerConfig, TrainingConfig
from fed_distill.errors import ConfigError

Control = Literal["server", "local", "pooled", "fedavg"]
CONTROLS: tuple[Control, ...] = ("server", "local", "pooled", "fedavg")
ROWS = ("teacher", "server", "local", "pooled")
"""Rows of the tables of results, beside which a federation of the same title could not be told apart."""


class Experiment(ConfigTable):
    """Everything that a run depends on. ``Experiment.read(path)`` reads a TOML file."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=200,
        description="name of the run and its folder",
    )
    seed: Seed = Field(0, description="seed of the first repeat; repeat k uses seed + k")
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
        if self.distill.final_temperature is None or self.adaptation.enabled:  # which is at the final one
            return self
        epochs = [self.training.server.epochs, *(assistant.epochs for assistant in self.distill.assistants)]
        if max([*epochs, *([self.training.pooled.epochs] if "pooled" in self.controls else [])]) <= 1:
            raise ValueError(
                "distill.final_temperature is that of the last of several epochs: raise training.server.epochs above "
                "1, or set training.server.temperature"
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
            title, plain = federation.title, (federation.method, federation.aggregator) == ("fedavg", "fedavg")
            if title in ROWS or (title == "fedavg" and not plain):
                raise ValueError(
                    f"a federation cannot be called {title!r}, which is another row's name in every table of the "
                    "results: give it another `label`"
                )
        twice = {title for title in titles if titles.count(title) > 1}
        if twice:
            raise ValueError(f"two federations are called {sorted(twice)[0]!r}: give one of them a `label`")
        if self.data.valid_share + self.data.test_share >= 1.0:
            raise ValueError("data.valid_share and data.test_share leave nothing to train on")
        if self.data.clients == "elsewhere" and "pooled" in self.controls:
            raise ValueError("data.clients = 'elsewhere' leaves nothing to pool: take 'pooled' out of controls")
        return self

    @model_validator(mode="after")
    def _control_as_it_is(self) -> Self:
        named = "fedavg" in self.controls and self._compares("fedavg")
        if named and (self.privacy.protects or self.transport_of("fedavg") != TransportConfig()):
            raise ValueError(
                "a federation called 'fedavg' is the control of that name, which is neither private nor coded: give it "
                "a `label`, or take 'fedavg' out of controls"
            )
        return self

    @model_validator(mode="after")
    def _byzantine_in_simulations(self) -> Self:
        if not self.byzantine.fraction:
            return self
        if self.data.clients == "elsewhere":
            raise ValueError(
                "byzantine is for simulations, and data.clients = 'elsewhere' has real merchants: take [byzantine] out"
            )
        if "fedavg" in self.controls and self.is_byzantine("fedavg"):
            raise ValueError(
                "a federation called 'fedavg' is the control of that name, which has no Byzantine merchants: give it "
                "a `label`, or take 'fedavg' out of controls"
            )
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

        A federation titled ``fedavg`` is its own control. The ``personal_arm`` of X adapts X's global student to each
        merchant.
        """
        arms = {federation.title: federation for federation in self.federations()}
        intake = {key: getattr(self.federation, key) for key in INTAKE}
        same = ("rounds", "participation", "validate_every", "patience")
        kept = {**{key: getattr(self.federation, key) for key in same}, **intake}
        local_epochs = self.federation.options.get("local_epochs")
        plain = {} if local_epochs is None else {"local_epochs": local_epochs}
        if "fedavg" in self.controls:
            arms.setdefault("fedavg", FederationConfig(method="fedavg", options=plain, **kept))
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
        """All settings that decide what merchants release in an arm, JSON-ready: neither names and folders, nor whose
        answers the server takes."""
        tables = self.model_dump(mode="json", exclude={"runtime", "name", "seed", "repeats", "compare", "controls"})
        for key in ("ledger", "limits"):
            del tables["privacy"][key]
        tables["federation"] = self.arms()[arm].model_dump(mode="json", exclude=set(INTAKE))
        return tables

    def unit_of(self, arm: str) -> str:
        """Unit of the privacy of an arm: that of federations; ``none`` for controls and for what stays at merchants."""
        return self.privacy.unit if self._compares(arm) else UNPROTECTED

    def protects(self, arm: str) -> bool:
        """Whether anything is promised in an arm."""
        return is_protected(self.unit_of(arm))

    @property
    def tells_scores(self) -> bool:
        """Whether merchants are asked how many of their test examples a student has right."""
        return self.privacy.tells_scores

    def is_byzantine(self, arm: str) -> bool:
        """Whether an arm has Byzantine merchants: federations have, not controls or what stays at merchants."""
        return self.byzantine.fraction > 0.0 and self._compares(arm)

    def _compares(self, arm: str) -> bool:
        return any(federation.title == arm for federation in self.federations())

    def transport_of(self, arm: str) -> TransportConfig:
        """How messages are coded in an arm: federations may have chains of their own; controls have none."""
        for federation in self.federations():
            if federation.title == arm:
                return self.transport if federation.transport is None else federation.transport
        return TransportConfig()

    def training_of(self, arm: str) -> TrainerConfig:
        """How merchants train in an arm: in private federations as ``[privacy.training]`` changes it."""
        if arm == "local":
            return self.training.of_local()
        return self.training.of_merchants(self.promise.training if self.protects(arm) else None)

    @property
    def promise(self) -> ProtectedConfig:
        """``[privacy]`` of an experiment that promises something."""
        assert isinstance(self.privacy, ProtectedConfig)
        return self.privacy

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
        for table, command in (("axis", "study"), ("search", "tune")):
            if table in tables:
                raise ConfigError(f"{path} is no experiment, it has [[{table}]]: run it by `fed-distill {command}`")
        for key, value in (overrides or {}).items():
            _set(tables, key, value)
        return cls.parse(tables, str(path))

    def with_changes(self, changes: Mapping[str, Any]) -> Self:
        """A checked copy with ``changes`` (dotted keys) applied. Another ``privacy.unit`` takes over those keys of
        ``[privacy]`` that it has; what only the unit before had goes with it."""
        tables = self.model_dump(mode="json", exclude_none=True)
        unit = changes.get("privacy.unit", self.privacy.unit)
        if unit != self.privacy.unit:
            known = table_of_unit(unit).model_fields.keys() - {"options"}
            tables["privacy"] = {key: value for key, value in tables["privacy"].items() if key in known}
        for key, value in changes.items():
            _set(tables, key, value)
        return type(self).parse(tables)

    def tiny(self, kept: Collection[str] = ()) -> Self:
        """A quick version of the same experiment, for trying a file out: few merchants, a small teacher, two rounds.

        kept: dotted keys that stay as they are, such as those that a user has set for this version. The teacher stays
        if its model or its options are among them. The name gets its ``-tiny`` in any case: the folder of the whole
        experiment is not this one's.
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
            "teacher.max_examples": 200,
            "teacher.ensemble": seeds,
            "distill.assistants": assistants,
            "training.server.epochs": 1 if self.distill.final_temperature is None else 2,
            "training.pooled.epochs": 1,
            "training.local.epochs": 1,
            "federation.rounds": min(2, self.federation.rounds),
        }
        stays = {key for key in quick if any(_overlap(key, one) for one in kept)}
        if stays & {"teacher.model", "teacher.options"}:
            stays |= {"teacher.model", "teacher.options"}
        changes = {key: value for key, value in quick.items() if key not in stays}
        return self.with_changes({"name": f"{self.name}-tiny", **changes})

    def to_toml(self) -> str:
        """The complete experiment as TOML, defaults included."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """The experiment as a Flower run config: its TOML text under ``experiment``, and under ``set`` nothing."""
        return {"experiment": self.to_toml(), "set": ""}

    @classmethod
    def from_run_config(cls, config: Mapping[str, Any]) -> Self:
        """The experiment of a run config: TOML text under ``experiment``, and under ``set`` what is changed of it, as
        dotted keys with TOML values between commas (``federation.rounds = 3, name = "quick"``). ConfigError for a wrong
        text, setting or key."""
        odd = config.keys() - {"experiment", "set"}
        if odd:
            raise ConfigError(
                f"unknown run config key {sorted(odd)[0]!r}: give a setting by set, such as "
                "--run-config 'set=\"federation.rounds = 3\"'"
            )
        found = _of_run_config(str(config.get("experiment", "")), str(config.get("set", "")))
        return cls.parse(found, "run config")


def _as_tables(value: Any) -> list[Mapping[str, Any]]:
    """The tables of a list; what else is in it, or in its place, is somebody else's to refuse."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _of_run_config(text: str, settings: str) -> dict[str, Any]:
    """Tables of a run config."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"run config key experiment is no TOML: {error}") from error
    try:
        changes = tomllib.loads(f"set = {{{settings}}}")["set"]
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f'run config key set is not as in `federation.rounds = 3, name = "quick"`: {error}'
        ) from error
    return _merged(tables, changes)


def _merged(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``tables`` with each value of ``changes`` in its place; tables of both are merged."""
    merged = dict(tables)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def personal_arm(title: str) -> str:
    """The arm in which merchants adapt a federation's student to themselves; no title, for those have no slash."""
    return f"{title}/personal"


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
    tables[last] = deepcopy(value)  # later keys may write into it


def _overlap(key: str, other: str) -> bool:
    """Whether two dotted keys are of the same value, or one of a table that holds the other's."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
