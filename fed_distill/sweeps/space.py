"""A tuning file: a base experiment, the searched keys, the objective and the number of trials.

A key is searched in a range of numbers, among values like those of a study's axis, or among factors of what the base
sets. The file is validated before the first trial, including both ends of each range.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fed_distill.config import Experiment, PositiveInt
from fed_distill.config.toml import check_kind, first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.sweeps.axes import Choice, SweepTable
from fed_distill.sweeps.cells import fingerprint_of
from fed_distill.sweeps.dimensions import Dimension, Metric, check_distinct
from fed_distill.sweeps.grid import read_base
from fed_distill.sweeps.trial import check_unprotected, trial_of
from fed_distill.sweeps.variation import resolved, varied

OF_THE_FILE = ("name", "title", "trials", "seeds")
"""Keys of the file that ``--set`` may change, in addition to those of the base."""
OF_ITS_LENGTH = ("title", "trials")
"""Keys that may change between commands without making the trials incomparable."""


class Tuning(SweepTable):
    """A tuning: base, search space and settings of the sampler. ``Tuning.read(path)`` reads a TOML file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="name of the tuning's folder"
    )
    title: str = Field("", description="a sentence above the figure of the settings")
    base: Experiment = Field(
        description="what is tuned: an experiment's tables, over those of a `file` beside this one; its compare and "
        "repeats do not count, and its controls are trained for the best settings only"
    )
    search: list[Dimension] = Field(min_length=1, description="the keys that are searched")
    trials: PositiveInt = Field(30, description="settings tried in all, those of earlier commands included")
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(1, description="seeds of each trial, whose mean is its score")
    objective: Metric | None = Field(
        None, description="the metric to maximize, always on the validation set; by default the task's headline metric"
    )
    seed: int = Field(0, ge=0, description="of the sampler; the experiments' own seeds are the base's")
    random_trials: PositiveInt = Field(10, description="trials drawn at random before the sampler learns from them")
    pruning: bool = Field(True, description="stop a trial whose best round so far is below the others' median")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(1, description="rounds in which no trial is stopped")
    unpruned_trials: PositiveInt = Field(5, description="trials that must have ended before any is stopped")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct(self.search)
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
        """The base as run by each trial: one federation with ``seeds`` seeds, see ``trial.trial_of``."""
        return trial_of(self.base, {"repeats": self.seeds})

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
                check_unprotected(title, experiment)
        except ConfigError as error:
            raise ConfigError(f"{source}, {error}") from error
        return tuning

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides``, see ``parse``."""
        tables = read_toml(path, "tuning")
        check_kind(tables, path, "tuning")
        return cls.parse(tables, str(path), Path(path).parent, overrides)

    def to_toml(self) -> str:
        """Return the complete file as self-contained TOML, with the base experiment and its defaults."""
        tables = self.model_dump(mode="python", exclude_none=True, exclude={"base"})
        return tomli_w.dumps({**tables, "base": self.base.model_dump(mode="json", exclude_none=True)})


def _changed(experiment: Experiment, choices: Mapping[str, Choice]) -> Experiment:
    changes = {key: value for choice in choices.values() for key, value in choice.changes.items()}
    try:
        return varied(experiment, resolved(experiment, changes))
    except ConfigError as error:
        tried = ", ".join(f"{name} = {choice.label}" for name, choice in choices.items())
        raise ConfigError(f"search {tried}: {str(error).removeprefix('experiment: ')}") from error
