"""A tuning file: a base experiment, the keys that are searched, by what they are judged, and how many trials.

A key is searched in a range of numbers, or among values as those of a study's axis; the file is checked before the
first trial, each end of each range included.
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
from fed_distill.sweeps.cells import fingerprint_of
from fed_distill.sweeps.grid import OF_THE_STUDY, Axis, Choice, label_of, read_base, varied

if TYPE_CHECKING:
    from optuna import Trial

Metric = Literal["accuracy", "macro_f1", "auc", "ndcg@10", "mrr@10"]
Number = StrictInt | StrictFloat
OF_THE_FILE = ("name", "title", "trials", "seeds")
"""Keys of the file itself that ``--set`` may change beside those of the base."""
OF_ITS_LENGTH = ("title", "trials")
"""Keys that may change from one command to the next: the trials that there are stay comparable."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Range(_Table):
    """Numbers from ``low`` to ``high``, both included: integers if both ends are."""

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
        whose = f"search {self.name!r}"
        check_renamed({self.key: None})
        if not self.low < self.high:
            raise ValueError(f"{whose}: low = {self.low:g} must lie below high = {self.high:g}")
        if self.key in OF_THE_STUDY or self.key.startswith("runtime."):
            raise ValueError(f"{whose}: {self.key} cannot be searched; it is the file's, or the base's")
        if self.log and self.low <= 0:
            raise ValueError(f"{whose}: log needs low above 0, not {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError(f"{whose}: log and step exclude each other: drop one")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"{whose}: step must be above 0, not {self.step:g}")
        if self.whole and isinstance(self.step, float):
            raise ValueError(f"{whose}: a range of integers needs an integer step, not {self.step:g}")
        if self.step is not None and not _divides(self.step, self.high - self.low):
            raise ValueError(
                f"{whose}: steps of {self.step:g} do not lead from low = {self.low:g} to high = {self.high:g}"
            )
        return self

    @property
    def whole(self) -> bool:
        """Whether it is of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: "Trial") -> float:
        """The number that a trial shall try."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def chosen(self, value: Any) -> Choice:
        """What ``suggest`` gave, as a labelled change."""
        return Choice(label_of(value), {self.key: value})

    def ends(self) -> tuple[Choice, ...]:
        """Its first and last number."""
        return self.chosen(self.low), self.chosen(self.high)


class Values(Axis):
    """Values without an order, or named tables that change several keys at once, as those of a study's axis."""

    def suggest(self, trial: "Trial") -> str:
        """The label of the value that a trial shall try."""
        return trial.suggest_categorical(self.name, [choice.label for choice in self.choices])

    def chosen(self, value: Any) -> Choice:
        """What ``suggest`` gave, as a labelled change."""
        return next(choice for choice in self.choices if choice.label == value)

    def ends(self) -> tuple[Choice, ...]:
        """All of them: each may be wrong in its own way."""
        return tuple(self.choices)


def _form(table: Any) -> str:
    has_values = "values" in table if isinstance(table, Mapping) else isinstance(table, Values)
    return "values" if has_values else "range"


Dimension = Annotated[Annotated[Range, Tag("range")] | Annotated[Values, Tag("values")], Discriminator(_form)]


class Tuning(_Table):
    """What is tuned, and how. ``Tuning.read(path)`` reads a TOML file."""

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
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(1, description="seeds of each trial, whose mean is its score")
    objective: Metric | None = Field(
        None, description="what is raised, always on the validation set; none for the task's headline metric"
    )
    seed: int = Field(0, ge=0, description="of the sampler; the experiments' own seeds are the base's")
    random_trials: PositiveInt = Field(10, description="trials drawn at random before the sampler learns from them")
    pruning: bool = Field(True, description="stop a trial whose best round so far is below the others' median")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(1, description="rounds in which no trial is stopped")
    unpruned_trials: PositiveInt = Field(5, description="trials that must have ended before any is stopped")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [dimension.name for dimension in self.search]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two searches are called {twice[0]!r}: give one of them another `name`")
        keys = [key for dimension in self.search for key in set(_keys(dimension))]
        again = [key for key in keys if keys.count(key) > 1]
        if again:
            raise ValueError(f"{again[0]} is searched twice: keep one of the searches")
        return self

    @property
    def names(self) -> list[str]:
        """Of what is searched, in order."""
        return [dimension.name for dimension in self.search]

    @property
    def identity(self) -> str:
        """Changes with all that the trials depend on; more of them may be asked for under the same identity."""
        tables = self.model_dump(mode="json", exclude={*OF_ITS_LENGTH, "name", "base"})
        return fingerprint(tuning=tables, base=fingerprint_of(self.base.with_changes({"controls": []})))

    @property
    def start(self) -> Experiment:
        """The base as each trial runs it: one federation on ``seeds`` seeds, and nothing that only a report needs."""
        return self.base.with_changes({"repeats": self.seeds, "controls": [], "compare": []})

    def chosen(self, parameters: Mapping[str, Any]) -> dict[str, Choice]:
        """The choices of a trial by the parameters that Optuna keeps of it."""
        return {one.name: one.chosen(parameters[one.name]) for one in self.search}

    def experiment(self, choices: Mapping[str, Choice]) -> Experiment:
        """What a trial with these choices runs; ConfigError naming them if they do not go together."""
        return _changed(self.start, choices)

    def best(self, choices: Mapping[str, Choice]) -> Experiment:
        """The base with the best choices: a complete experiment, its controls included."""
        return _changed(self.base, choices).with_changes({"name": f"{self.name}-best"})

    def probes(self) -> Iterator[tuple[str, Experiment]]:
        """The base, and each end of each search alone, in words and as an experiment; ConfigError naming the wrong
        search."""
        yield "base", self.start
        for dimension in self.search:
            for choice in dimension.ends():
                yield f"search {dimension.name} = {choice.label}", self.experiment({dimension.name: choice})

    def tiny(self, kept: Collection[str] = ()) -> "Tuning":
        """A quick version, to try the file out: three trials of the base's tiny version.

        kept: keys that stay as they are, as in ``Experiment.tiny``, and ``trials`` and ``seeds``.
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
        """Check ``tables``; raise ConfigError naming ``source`` and what is wrong.

        folder: where the base's ``file`` is looked for. overrides: dotted keys of the base experiment, or those of
        ``OF_THE_FILE``.
        """
        changes = dict(overrides or {})
        own = {key: changes.pop(key) for key in OF_THE_FILE if key in changes}
        base = read_base(tables.get("base"), source, folder, changes)
        try:
            tuning = cls.model_validate({**tables, **own, "base": base})
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error)}") from error
        try:
            for title, experiment in tuning.probes():
                _check_public(title, experiment)
        except ConfigError as error:
            raise ConfigError(f"{source}, {error}") from error
        return tuning

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides``, as ``parse`` does."""
        return cls.parse(read_toml(path, "tuning"), str(path), Path(path).parent, overrides)

    def to_toml(self) -> str:
        """The complete file: it stands alone, with the base experiment and its defaults in it."""
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
    """ConfigError for a private experiment, since its trials would cost privacy that no ledger of one run counts.

    The best of many private runs reveals more than any one of them (Papernot and Steinke 2022, "Hyperparameter tuning
    with Rényi differential privacy").
    """
    privacy = experiment.privacy
    if privacy.protects:
        raise ConfigError(
            f"{title}: privacy.unit = {privacy.unit!r} cannot be tuned: each trial is a release of its own, and "
            "choosing the best of them reveals more than one run does. Set privacy.unit = 'none', tune on "
            "public data or in a simulation of other data, then run best.toml once with --set privacy.unit and its "
            "epsilon"
        )


def _divides(step: float, whole: float) -> bool:
    steps = whole / step
    return steps >= 0.5 and abs(steps - round(steps)) < 1e-9 * steps
