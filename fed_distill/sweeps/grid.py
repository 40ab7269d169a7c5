"""A study file: a base experiment, axes, exclusions and the number of seeds.

It is validated like an experiment, so that a grid of a hundred runs fails at its first mistake instead of overnight. An
axis is a list of values of one key, or of named tables that change several keys.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fed_distill.config import UNPROTECTED, Experiment, is_protected
from fed_distill.config.keys import is_table
from fed_distill.config.renamed import check_renamed
from fed_distill.config.tables import LARGEST
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError

EPSILON, NOISE = "privacy.epsilon", "privacy.noise_multiplier"
NO_PRIVACY: dict[str, Any] = {"unit": UNPROTECTED}
"""The ``[privacy]`` table of an experiment without privacy."""
OF_THE_STUDY = ("name", "seed", "repeats", "controls", "compare")
"""Keys of an experiment that no axis may change, in addition to those of ``[runtime]``: they are set by the study or
the base."""
DEPENDENT: Mapping[str, tuple[tuple[str, Any], ...]] = {
    "data.dataset": (("data.options", {}),),
    "teacher.model": (("teacher.options", {}),),
    "student.model": (("student.options", {}),),
    "byzantine.attack": (("byzantine.options", {}),),
    "federation.method": (("federation.options", {}), ("federation.label", "")),
    "federation.aggregator": (("federation.aggregator_options", {}), ("federation.label", "")),
}
"""For each key that selects a part: keys that are reset to these values if another part is selected."""
COLUMNS = (
    "role", "seed", "data_seed", "fingerprint", "status", "reason", "score", "accuracy", "macro_f1", "auc", "ndcg@10",
    "mrr@10", "covers",
    "merchant_accuracy", "worst_merchant", "worst_merchant_accuracy", "retention", "gap_closed", "gap_closed_auc",
    "worst_tenth", "cold", "cold_above_server", "above_server", "above_server_p", "above_fedavg", "above_fedavg_p",
    "gain", "gain_auc", "downlink_bytes", "uplink_bytes", "sent_bytes", "total_bytes", "seconds", "series", "seeds",
    "of",
)  # fmt: skip
"""Columns without a dot in the tables of results, in addition to the axes."""


@dataclass(frozen=True)
class Choice:
    """One value of an axis: its label in tables and figures, and the keys of the experiment that it changes."""

    label: str
    changes: Mapping[str, Any]

    @property
    def unit(self) -> str | None:
        """Privacy unit that it selects, if any; an infinite ε means no privacy."""
        return UNPROTECTED if self.changes.get(EPSILON) == math.inf else self.changes.get("privacy.unit")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, validate_by_name=True)


class Axis(_Table):
    """One dimension of the grid."""

    name: str = Field(
        "", pattern=r"^[A-Za-z0-9 _-]*$", description="name in tables and figures; default: the key's last part"
    )
    key: str | None = Field(None, description="key of the experiment that plain values are for, as privacy.epsilon")
    values: list[Any] = Field(
        min_length=1, description='numbers or texts for `key`, or tables { label = "...", "some.key" = ..., ... }'
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, tables: Any) -> Any:
        if isinstance(tables, Mapping) and not tables.get("name"):
            key = tables.get("key")
            if not isinstance(key, str):
                raise ValueError("an axis requires a `name`, or a `key` to be named after")
            return {**tables, "name": key.rpartition(".")[2]}
        return tables

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.name in COLUMNS or self.name.endswith("_interval"):
            raise ValueError(f"axis {self.name!r}: the results have a column of this name: choose another name")
        labels = [choice.label for choice in self.choices]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"axis {self.name!r}: two values have the label {twice[0]!r}: rename one")
        for key in (key for choice in self.choices for key in choice.changes):
            check_renamed({key: None})
            if key in OF_THE_STUDY or key.startswith("runtime."):
                raise ValueError(f"axis {self.name!r}: {key} cannot be varied: set it in the study or in its base")
        return self

    def may_change(self, key: str | None) -> bool:
        """Whether one of its values changes this key of the experiment."""
        return any(key in choice.changes for choice in self.choices)

    @property
    def choices(self) -> list[Choice]:
        """The values as labelled changes."""
        return [self._choice(value) for value in self.values]

    @property
    def is_budget(self) -> bool:
        """Whether it varies the privacy budget only."""
        keys = {key for choice in self.choices for key in choice.changes}
        units = {choice.unit for choice in self.choices} - {None, UNPROTECTED}
        return bool(keys & {EPSILON, NOISE}) and all(key.startswith("privacy.") for key in keys) and len(units) <= 1

    def _choice(self, value: Any) -> Choice:
        if isinstance(value, Mapping):
            changes = dict(value)
            label = changes.pop("label", None)
            if not isinstance(label, str) or not label:
                raise ValueError(f'axis {self.name!r}: a table among the values requires a label = "..."')
            return Choice(label, _dotted(changes))
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(
                f"axis {self.name!r}: {value!r} is neither a number nor a text: use a table with a label, "
                f'{{ label = "...", "{self.key or "some.key"}" = ... }}'
            )
        if self.key is None:
            raise ValueError(f"axis {self.name!r}: {value!r} requires the axis to have a `key`: add it")
        return Choice(label_of(value), {self.key: value})


class Attacks(_Table):
    """Attacks on the finished runs of cells, see ``fed-distill audit``; each costs several runs."""

    seeds: Annotated[int, Field(ge=1)] = Field(1, description="cells of so many seeds are attacked, from the first on")
    shadows: Annotated[int, Field(ge=4, multiple_of=2)] = Field(16, description="shadow students of the strongest")
    canaries: Annotated[int, Field(ge=20)] = Field(400, description="canaries put into the largest merchant's data")


class Study(_Table):
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
    audit: Attacks | None = Field(None, description="attack the cells; none for no attack")
    axes: list[Axis] = Field(alias="axis", min_length=1, description="the axes; the first one changes slowest")
    exclude: list[dict[str, str | list[str]]] = Field(
        default_factory=list, description="combinations that are left out: axis -> label, or list of labels"
    )

    baseline: tuple[str, str] | None = Field(
        None, description="[axis, label]: what the other labels of that axis are worth over this one is in the tables"
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
        return self

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
            the study
        :raises ConfigError: a table is invalid
        """
        changes = dict(overrides or {})
        own = {key: changes.pop(key) for key in ("name", "title", "seeds", "data_seeds") if key in changes}
        base = read_base(tables.get("base"), source, folder, changes)
        try:
            return cls.model_validate({**tables, **own, "base": base})
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(error, cls)}") from error

    @classmethod
    def read(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a TOML file and apply ``overrides``, see ``parse``."""
        return cls.parse(read_toml(path, "study"), str(path), Path(path).parent, overrides)

    def to_toml(self) -> str:
        """Return the complete study as self-contained TOML, with the base experiment and its defaults."""
        tables = self.model_dump(mode="python", by_alias=True, exclude_none=True, exclude={"base"})
        return tomli_w.dumps({**tables, "base": self.base.model_dump(mode="json", exclude_none=True)})


def varied(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Return a validated copy with ``changes`` (dotted keys).

    Options belong to the selected part: if the part changes, they are reset unless ``changes`` contains new ones.
    ``privacy.epsilon = inf`` and ``privacy.unit = "none"`` reset all privacy settings, so that cells that differ in
    nothing else are equal. Another privacy unit drops keys of the base that it does not have; such a key in ``changes``
    is an error.

    :raises ConfigError: a key is invalid
    """
    own = copy.deepcopy(dict(changes))  # nested tables are modified below
    full = {key: value for key, value in own.items() if not key.startswith("privacy.")}
    full |= _privacy({key: value for key, value in own.items() if key.startswith("privacy.")})
    for key, dependents in DEPENDENT.items():
        if key in own and own[key] != _value(experiment, key):
            full = copy.deepcopy(dict(dependents)) | full
    return experiment.with_changes(full)


def _privacy(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes to ``[privacy]``: an infinite ε is no privacy; a new ε and a fixed noise replace each other."""
    if changes.get(EPSILON) == math.inf or not is_protected(changes.get("privacy.unit", "")):
        return {"privacy": dict(NO_PRIVACY)}
    given = [key for key in (EPSILON, NOISE) if key in changes]
    replaced = {NOISE if key == EPSILON else EPSILON: None for key in given} if len(given) == 1 else {}
    return {**replaced, **changes}


def label_of(value: bool | int | float | str) -> str:
    """Return the label of a plain value: ``8`` for 8 and 8.0, ``inf`` for infinity."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    changes = _dotted(tables)
    try:
        experiment = Experiment() if file is None else Experiment.read(folder / file)
        alone = experiment.with_changes({"compare": [], "repeats": 1})
        return varied(varied(alone, changes), overrides)
    except ConfigError as error:
        raise ConfigError(f"{source}, base: {str(error).removeprefix('experiment: ')}") from error


def _dotted(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of an experiment as dotted keys; a table of options is a value."""
    dotted: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and is_table(key):
            dotted.update(_dotted({f"{key}.{name}": child for name, child in value.items()}))
        else:
            dotted[key] = value
    return dotted


def _value(experiment: Experiment, dotted: str) -> Any:
    table, _, key = dotted.partition(".")
    return getattr(getattr(experiment, table), key)
