"""A tuning file: a base experiment, the searched keys, the objective and the number of trials.

A key is searched in a range of numbers, or among values like those of a study's axis. The file is validated before the
first trial, including both ends of each range.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    ValidationError,
    model_validator,
)

from fed_distill.config import Experiment, PositiveInt
from fed_distill.config.renamed import check_renamed
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.sweeps.axes import OF_THE_STUDY, Axis, Choice, label_of
from fed_distill.sweeps.cells import fingerprint_of
from fed_distill.sweeps.grid import read_base
from fed_distill.sweeps.variation import varied

if TYPE_CHECKING:
    from optuna import Trial

Metric = Literal["accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10"]
Number = StrictInt | StrictFloat
OF_THE_FILE = ("name", "title", "trials", "seeds")
"""Keys of the file that ``--set`` may change, in addition to those of the base."""
OF_ITS_LENGTH = ("title", "trials")
"""Keys that may change between commands without making the trials incomparable."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Range(_Table):
    """Numbers from ``low`` to ``high`` inclusive: integers if both ends are."""

    key: str = Field(description="key of the experiment, as training.merchants.learning_rate")
    name: str = Field("", description="name in tables and figures; default: the key's last part")
    low: Number
    high: Number
    log: bool = Field(False, description="draw the logarithm evenly, for what spans orders of magnitude")
    step: Number | None = Field(None, description="distance of the numbers drawn, from `low` on; none for any number")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and not table.get("name") and isinstance(table.get("key"), str):
            return {**table, "name": table["key"].rpartition(".")[2]}
        return table

    @model_validator(mode="after")
    def _usable(self) -> Self:
        prefix = f"search {self.name!r}"
        check_renamed({self.key: None})
        if not self.low < self.high:
            raise ValueError(f"{prefix}: low = {self.low:g} must be below high = {self.high:g}")
        if self.key in OF_THE_STUDY or self.key.startswith("runtime."):
            raise ValueError(f"{prefix}: {self.key} cannot be searched: set it in the file or in its base")
        if self.log and self.low <= 0:
            raise ValueError(f"{prefix}: log requires low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError(f"{prefix}: log and step exclude each other: remove one")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"{prefix}: step must be above 0, not {self.step:g}")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"{prefix}: a range of integers requires an integer step, not {self.step:g}")
        if self.step is not None and not _divides(self.step, self.high - self.low):
            raise ValueError(
                f"{prefix}: steps of {self.step:g} do not lead from low = {self.low:g} to high = {self.high:g}"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether it is a range of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: "Trial") -> float:
        """Return the number that a trial uses."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def chosen(self, value: Any) -> Choice:
        """Return a result of ``suggest`` as a labelled change."""
        return Choice(label_of(value), {self.key: value})

    def ends(self) -> tuple[Choice, ...]:
        """Return the first and the last number."""
        return self.chosen(self.low), self.chosen(self.high)


class Values(Axis):
    """Unordered values, or named tables that change several keys, like those of a study's axis."""

    def suggest(self, trial: "Trial") -> str:
        """Return the label of the value that a trial uses."""
        return trial.suggest_categorical(self.name, [choice.label for choice in self.choices])

    def chosen(self, value: Any) -> Choice:
        """Return a result of ``suggest`` as a labelled change."""
        return next(choice for choice in self.choices if choice.label == value)

    def ends(self) -> tuple[Choice, ...]:
        """Return all values, since each may be invalid."""
        return tuple(self.choices)


def _form(table: Any) -> str:
    has_values = "values" in table if isinstance(table, Mapping) else isinstance(table, Values)
    return "values" if has_values else "range"


Dimension = Annotated[Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")], Discriminator(_form)]


class Tuning(_Table):
    """A tuning: base, search space and settings of the sampler. ``Tuning.read(path)`` reads a TOML file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="name of the tuning's folder"
    )
    title: str = Field("", description="a sentence for the figures")
    base: Experiment = Field(
        description="what is tuned: an experiment's tables, over those of a `file` beside this one; its compare and "
        "repeats do not count, and its controls are trained for the best settings only"
    )
    search: list[Dimension] = Field(min_length=1, description="the keys that are searched")
    trials: PositiveInt = Field(30, description="settings tried in all, those of earlier commands included")
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(1, description="seeds of each trial, prefix mean is its score")
    objective: Metric | None = Field(
        None, description="what is raised, always on the validation set; none for the task's headline metric"
    )
    seed: int = Field(0, ge=0, description="of the sampler; the experiments' own seeds are the base's")
    random_trials: PositiveInt = Field(10, description="trials drawn at random before the sampler learns from them")
    pruning: bool = Field(True, description="stop a trial prefix best round so far is below the others' median")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(1, description="rounds in which no trial is stopped")
    unpruned_trials: PositiveInt = Field(5, description="trials that must have ended before any is stopped")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [dimension.name for dimension in self.search]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two searches have the name {twice[0]!r}: give one of them another `name`")
        keys = [key for dimension in self.search for key in set(_keys(dimension))]
        again = [key for key in keys if keys.count(key) > 1]
        if again:
            raise ValueError(f"{again[0]} is searched twice: remove one of the searches")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the searches, in order."""
        return [dimension.name for dimension in self.search]

    @property
    def identity(self) -> str:
        """Fingerprint of everything that the trials depend on; their number may change."""
        tables = self.model_dump(mode="json", exclude={*OF_ITS_LENGTH, "name", "base"})
        return fingerprint(tuning=tables, base=fingerprint_of(self.base.with_changes({"controls": []})))

    @property
    def start(self) -> Experiment:
        """The base as run by each trial: one federation with ``seeds`` seeds, without anything for the report only."""
        return self.base.with_changes({"repeats": self.seeds, "controls": [], "compare": []})

    def chosen(self, parameters: Mapping[str, Any]) -> dict[str, Choice]:
        """Return the choices of a trial, given its stored parameters."""
        return {one.name: one.chosen(parameters[one.name]) for one in self.search}

    def experiment(self, choices: Mapping[str, Choice]) -> Experiment:
        """Return the experiment of a trial; raise ConfigError, naming the choices, if they are incompatible."""
        return _changed(self.start, choices)

    def best(self, choices: Mapping[str, Choice]) -> Experiment:
        """Return the base with the best choices, as a complete experiment with controls."""
        return _changed(self.base, choices).with_changes({"name": f"{self.name}-best"})

    def probes(self) -> Iterator[tuple[str, Experiment]]:
        """Yield the base, and each end of each search alone, as description and experiment; raise ConfigError, naming
        the search, if one is invalid."""
        yield "base", self.start
        for dimension in self.search:
            for choice in dimension.ends():
                yield f"search {dimension.name} = {choice.label}", self.experiment({dimension.name: choice})

    def tiny(self, kept: Collection[str] = ()) -> "Tuning":
        """Return a quick version for testing the file: three trials of the base's tiny version.

        :param kept: keys that it leaves unchanged, see ``Experiment.tiny``, and ``trials`` and ``seeds``
        """
        quick = {"trials": min(3, self.trials), "seeds": 1, "unpruned_trials": 1}
        changes = {key: value for key, value in quick.items() if key not in kept}
        return self.model_copy(update={"base": self.base.tiny(kept), **changes})

    @classmethod
    def parse(
        cls,
        tables: Mapping[str, Any],
        source: str = "tuning",
        folder: Path = Path(),
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """Validate ``tables``.

        :param tables: content of a tuning file
        :param source: name of the file, for error messages
        :param folder: folder of the base's ``file``
        :param overrides: dotted keys of the base experiment, or those of ``OF_THE_FILE``
        :raises ConfigError: a table is invalid
        """
        changes = dict(overrides or {})
        own = {key: changes.pop(key) for key in OF_THE_FILE if key in changes}
        base = read_base(tables.get("base"), source, folder, changes)
        try:
            tuning = cls.model_validate({**tables, **own, "base": base})
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error, cls)}") from error
        try:
            for title, experiment in tuning.probes():
                _check_public(title, experiment)
        except ConfigError as error:
            raise ConfigError(f"{source}, {error}") from error
        return tuning

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides``, see ``parse``."""
        return cls.parse(read_toml(path, "tuning"), str(path), Path(path).parent, overrides)

    def to_toml(self) -> str:
        """Return the complete file as self-contained TOML, with the base experiment and its defaults."""
        tables = self.model_dump(mode="python", exclude_none=True, exclude={"base"})
        return tomli_w.dumps({**tables, "base": self.base.model_dump(mode="json", exclude_none=True)})


def _keys(dimension: Range | Values) -> Iterator[str]:
    for choice in dimension.ends():
        yield from choice.changes


def _changed(experiment: Experiment, choices: Mapping[str, Choice]) -> Experiment:
    changes = {key: value for choice in choices.values() for key, value in choice.changes.items()}
    try:
        return varied(experiment, changes)
    except ConfigError as error:
        tried = ", ".join(f"{name} = {choice.label}" for name, choice in choices.items())
        raise ConfigError(f"search {tried}: {str(error).removeprefix('experiment: ')}") from error


def _check_public(title: str, experiment: Experiment) -> None:
    """Raise ConfigError for a private experiment: no single run's ledger covers the privacy cost of its trials.

    The best of many private runs reveals more than any one of them (Papernot and Steinke 2022, "Hyperparameter tuning
    with Rényi differential privacy").
    """
    privacy = experiment.privacy
    if privacy.protects:
        raise ConfigError(
            f"{title}: privacy.unit = {privacy.unit!r} cannot be tuned: each trial is a separate release, and "
            "selecting the best one reveals more than a single run. Set privacy.unit = 'none', tune on "
            "public data or in a simulation with other data, then run best.toml once with --set privacy.unit and its "
            "epsilon"
        )


def _divides(step: float, whole: float) -> bool:
    steps = whole / step
    return steps >= 0.5 and abs(steps - round(steps)) < 1e-9 * steps
