"""A study file: a base experiment, axes, exclusions and the number of seeds.

It is validated like an experiment, so that a grid of a hundred runs fails at its first mistake instead of overnight.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from fed_distill.config import Experiment
from fed_distill.config.tables import LARGEST
from fed_distill.config.toml import check_kind, first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.sweeps.axes import Axis, SweepTable, dotted_keys, label_of
from fed_distill.sweeps.row_tuning import TUNED_CONTROLS, RowTuning
from fed_distill.sweeps.variation import varied


class Attacks(SweepTable):
    """Attacks on the finished runs of cells, see ``fed-distill audit``; each costs several runs."""

    seeds: Annotated[int, Field(ge=1)] = Field(
        1, description="number of seeds whose cells are attacked, starting with the first"
    )
    shadows: Annotated[int, Field(ge=4, multiple_of=2)] = Field(16, description="shadow students of the strongest")
    canaries: Annotated[int, Field(ge=20)] = Field(400, description="canaries put into the largest merchant's data")


class Study(SweepTable):
    """A grid of experiments. ``Study.read(path)`` reads a TOML file; ``cells.expand`` returns its cells."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, description="name of the study's folder")
    title: str = Field("", description="the report's title, a sentence or a question")
    base: Experiment = Field(
        description="what all cells have in common: an experiment's tables, over those of a `file` beside the study; "
        "its repeats and compare do not count, its controls are trained once for each seed"
    )
    seeds: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="seeds of each cell, from the base's seed on")
    data_seeds: list[Annotated[int, Field(ge=0, le=LARGEST)]] = Field(
        default_factory=list,
        description="values of data.seed: each cell is run on each of these splits with each of its `seeds`; empty: "
        "the base's only, so that intervals do not cover the choice of the test set",
    )
    tuning: RowTuning | None = Field(
        None, description="equally many trials for each row, before its cells; none: the settings are those of the file"
    )
    audit: Attacks | None = Field(None, description="attack the cells; none for no attack")
    axes: list[Axis] = Field(alias="axis", min_length=1, description="the axes; the first one changes slowest")
    exclude: list[dict[str, str | list[str]]] = Field(
        default_factory=list, description="combinations that are left out: axis -> label, or list of labels"
    )

    baseline: tuple[str, str] | None = Field(
        None,
        description="[axis, label]: the tables show the paired difference of the axis's other labels to this one, with "
        "an interval and a p-value",
    )

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, tables: Any) -> Any:
        if isinstance(tables, Mapping) and isinstance(excluded := tables.get("exclude"), list):
            return {**tables, "exclude": [_labels(one) if isinstance(one, Mapping) else one for one in excluded]}
        return tables

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [axis.name for axis in self.axes]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two axes have the name {twice[0]!r}: give one of them another `name`")
        for one in self.axes:
            others = [other.name for other in self.axes if other is not one and other.may_change(one.key)]
            if others:
                raise ValueError(f"axes {one.name!r} and {others[0]!r} both change {one.key}: keep one of them")
        known = {axis.name: [choice.label for choice in axis.choices] for axis in self.axes}
        for number, table in enumerate(self.exclude, 1):
            if not table:
                raise ValueError(f"table {number} of exclude is empty and would exclude everything: remove it")
            for axis, labels in table.items():
                if axis not in known:
                    raise ValueError(f"table {number} of exclude: unknown axis {axis!r}; axes: {', '.join(names)}")
                unknown = [label for label in _as_list(labels) if label not in known[axis]]
                if unknown:
                    raise ValueError(
                        f"table {number} of exclude: axis {axis!r} has no value {unknown[0]!r}; "
                        f"it has: {', '.join(known[axis])}"
                    )
        self._check_baseline(known)
        self._check_data_seeds()
        self._check_tuning(known)
        return self

    def _check_tuning(self, known: Mapping[str, Sequence[str]]) -> None:
        tuning = self.tuning
        if tuning is None:
            return
        if tuning.axis not in known:
            raise ValueError(f"tuning: unknown axis {tuning.axis!r}; axes: {', '.join(known)}")
        unknown = [label for label in tuning.rows if label not in known[tuning.axis]]
        if unknown:
            raise ValueError(f"tuning.rows: axis {tuning.axis!r} has no value {unknown[0]!r}")
        idle = [label for label in known[tuning.axis] if not tuning.space("row", label)]
        if idle:
            raise ValueError(f"tuning: {idle[0]!r} has nothing to search: add `search` for all rows, or its own keys")
        absent = [name for name in tuning.controls if name not in self.base.controls]
        if absent:
            raise ValueError(
                f"tuning.controls: the base has no control {absent[0]!r}: add it to controls, or remove it"
            )
        untuned = [name for name in TUNED_CONTROLS if name in self.base.controls and name not in tuning.controls]
        if untuned:
            raise ValueError(
                f"tuning: rows are compared with the control {untuned[0]!r}, which has no trials: add its keys as "
                f"tuning.controls.{untuned[0]}, or remove it from the base's controls"
            )
        of_server = tuning.keys("control", "server") if "server" in tuning.controls else []
        of_rows = [key for label in known[tuning.axis] for key in tuning.keys("row", label)]
        for axis in self.axes:
            searched = of_server if axis.name == tuning.axis else [*of_server, *of_rows]
            both = [key for key in searched if axis.may_change(key)]
            if both:
                raise ValueError(f"axis {axis.name!r} and tuning both change {both[0]}: keep one of them")

    @property
    def reported_seeds(self) -> list[int]:
        """Training seeds of the cells."""
        return list(range(self.base.seed, self.base.seed + self.seeds))

    @property
    def reported_data_seeds(self) -> list[int]:
        """Data seeds of the cells."""
        return [*self.data_seeds] or [self.base.data.seed]

    @property
    def trial_seeds(self) -> dict[str, int]:
        """Seeds of the trials of ``tuning``, as changes of an experiment."""
        given = (self.tuning.seed, self.tuning.data_seed) if self.tuning is not None else (None, None)
        seed, data_seed = given
        return {
            "seed": max(self.reported_seeds) + 1 if seed is None else seed,
            "data.seed": max(self.reported_data_seeds) + 1 if data_seed is None else data_seed,
        }

    def _check_data_seeds(self) -> None:
        if len(set(self.data_seeds)) < len(self.data_seeds):
            raise ValueError("data_seeds: a seed is listed twice: remove it")
        varied_by = [axis.name for axis in self.axes if axis.may_change("data.seed")]
        if self.data_seeds and varied_by:
            raise ValueError(f"axis {varied_by[0]!r} and data_seeds both change data.seed: keep one of them")

    def _check_baseline(self, known: Mapping[str, Sequence[str]]) -> None:
        if self.baseline is None:
            return
        axis, label = self.baseline
        if axis not in known:
            raise ValueError(f"baseline: unknown axis {axis!r}; axes: {', '.join(known)}")
        if label not in known[axis]:
            raise ValueError(f"baseline: axis {axis!r} has no value {label!r}; it has: {', '.join(known[axis])}")

    def excludes(self, labels: Mapping[str, str]) -> bool:
        """Whether the combination of these labels (by axis) is excluded."""
        return any(all(labels[axis] in _as_list(found) for axis, found in table.items()) for table in self.exclude)

    @property
    def budget_axis(self) -> str | None:
        """Name of the axis that varies the privacy budget, if there is one."""
        return next((axis.name for axis in self.axes if axis.is_budget), None)

    @classmethod
    def parse(
        cls,
        tables: Mapping[str, Any],
        source: str = "study",
        folder: Path = Path(),
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        """Validate ``tables``.

        :param tables: content of a study file
        :param source: name of the file, for error messages
        :param folder: folder of the base's ``file``
        :param overrides: dotted keys of the base experiment, or ``name``, ``title``, ``seeds`` and ``data_seeds`` of
            the study, or ``trials``, ``seed`` and ``data_seed`` of its tuning as ``tuning.trials``
        :raises ConfigError: a table is invalid
        """
        changes = dict(overrides or {})
        own: dict[str, Any] = {
            key: changes.pop(key) for key in ("name", "title", "seeds", "data_seeds") if key in changes
        }
        own |= _with_tuning(tables.get("tuning"), changes, source)
        base = read_base(tables.get("base"), source, folder, changes)
        try:
            return cls.model_validate({**tables, **own, "base": base})
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error, cls)}") from error

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides``, see ``parse``.

        A file with ``extends = "other.toml"`` has the tables and keys of that study, in the same folder, that are not
        its own.
        """
        tables, folder = dict(read_toml(path, "study")), Path(path).parent
        check_kind(tables, path, "study")
        extended = tables.pop("extends", None)
        if extended is not None:
            if not isinstance(extended, str) or Path(extended).name != extended:
                raise ConfigError(f"{path}: extends must be the name of a study's file in the same folder")
            others = read_toml(folder / extended, "study")
            if "extends" in others:
                raise ConfigError(f"{path}: {extended} extends another study itself: extend that one")
            tables = {**others, **tables}
        return cls.parse(tables, str(path), folder, overrides)

    def to_toml(self) -> str:
        """Return the complete study as self-contained TOML, with the base experiment and its defaults."""
        tables = self.model_dump(mode="python", by_alias=True, exclude_none=True, exclude={"base"})
        return tomli_w.dumps({**tables, "base": self.base.model_dump(mode="json", exclude_none=True)})


def _with_tuning(table: Any, changes: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the ``tuning`` table with the settings of it in ``changes``, which are removed there; empty without."""
    keys = {f"tuning.{key}": key for key in ("trials", "seed", "data_seed") if f"tuning.{key}" in changes}
    if not keys:
        return {}
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: {min(keys)} is set, but the study has no [tuning] table: add it to the file")
    return {"tuning": {**table, **{key: changes.pop(dotted) for dotted, key in keys.items()}}}


def _labels(table: Mapping[str, Any]) -> dict[str, Any]:
    """Replace plain values of an exclusion by their labels."""
    return {
        axis: [label_of(value) for value in found] if isinstance(found, list) else label_of(found)
        for axis, found in table.items()
    }


def _as_list(labels: str | list[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else labels


def read_base(given: Any, source: str, folder: Path, overrides: Mapping[str, Any]) -> Experiment:
    """Read the experiment ``base`` of a file: its tables, over those of a ``file`` in ``folder``, with ``overrides``.

    Its repeats and compare are ignored.

    :raises ConfigError: a key is invalid
    """
    tables = {"file": given} if isinstance(given, str) else given
    if not isinstance(tables, Mapping):
        raise ConfigError(f'{source}: base is missing: set base = "file.toml", or add its tables')
    tables = dict(tables)
    file = tables.pop("file", None)
    if file is not None and not isinstance(file, str):
        raise ConfigError(f"{source}: base.file must be the path of an experiment's TOML file")
    changes = dotted_keys(tables)
    try:
        experiment = Experiment() if file is None else Experiment.read(folder / file)
        alone = experiment.with_changes({"compare": [], "repeats": 1})
        return varied(varied(alone, changes), overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}, base: {str(error).removeprefix('experiment: ')}") from error
