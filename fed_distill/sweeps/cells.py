"""The cells of a study: one experiment with one seed each, identified by a fingerprint of all inputs of its result.

Cells with the same experiment share a fingerprint and are trained once. The controls (server alone, each merchant
alone, all data pooled, FedAvg without a teacher) depend neither on privacy nor on the method, so they are trained once
per seed, in a cell of their own.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fed_distill.config import Experiment
from fed_distill.config.controls import OF_PURCHASES, UNTRAINED
from fed_distill.data.tasks import NEXT_BASKET, RELEVANCE
from fed_distill.errors import ConfigError
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.sweeps.axes import Choice
from fed_distill.sweeps.grid import Attacks, Study
from fed_distill.sweeps.variation import NO_PRIVACY, resolved, varied


@dataclass(frozen=True)
class Cell:
    """One experiment with one seed.

    labels: label of the value of each axis; empty for a cell of controls. controls: fingerprint of the cell with the
    controls of this seed; None without controls, and for a cell of controls. attacks: attacks on the finished run; not
    part of the fingerprint. data_seed: one of the study's ``data_seeds``; None if it has none. problem: why it cannot
    be run; None if it can.
    """

    labels: Mapping[str, str]
    seed: int
    experiment: Experiment
    fingerprint: str
    controls: str | None = None
    attacks: Attacks | None = None
    data_seed: int | None = None
    problem: str | None = None

    @property
    def role(self) -> str:
        """``cell`` or ``controls``."""
        return "cell" if self.labels else "controls"

    @property
    def title(self) -> str:
        """Description of the cell, such as ``method=fedmd, epsilon=8, seed 0``."""
        data = "" if self.data_seed is None else f", data seed {self.data_seed}"
        return f"{_written(self.labels) or 'controls'}{data}, seed {self.seed}"


@dataclass(frozen=True)
class Chosen:
    """Changes that the trials of a study have chosen, by label of the tuned ``axis`` and by control; a change may be a
    ``Factor``. Those of the control ``server`` hold for all cells, which start from its student."""

    axis: str = ""
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def over(self, experiment: Experiment, labels: Mapping[str, str]) -> Experiment:
        """Return the experiment of a cell with what was chosen for the server and for the row with these labels."""
        for changes in (self.controls.get("server"), self.rows.get(labels.get(self.axis, ""))):
            if changes:
                experiment = varied(experiment, resolved(experiment, changes))
        return experiment

    def over_controls(self, experiment: Experiment) -> Experiment:
        """Return the experiment of a cell of controls, which has the server's settings already, with those of the
        other controls."""
        for changes in (changes for name, changes in self.controls.items() if name != "server"):
            experiment = varied(experiment, resolved(experiment, changes))
        return experiment


AS_IN_THE_FILE = Chosen()
"""Nothing was chosen by trials."""


def expand(study: Study, tiny: bool = False, kept: Collection[str] = (), chosen: Chosen = AS_IN_THE_FILE) -> list[Cell]:
    """Return all cells by data seed and seed: their controls first, then the grid with the first axis changing slowest.

    Attacks are on cells of the first data seed only.

    :param study: the study
    :param tiny: use the tiny version of each experiment, one seed and one data seed
    :param kept: keys that ``tiny`` leaves unchanged, see ``Experiment.tiny``, and ``seeds`` and ``data_seeds``
    :param chosen: what trials have chosen
    :raises ConfigError: an experiment is invalid (the message names its cell), or all cells are excluded
    """
    combinations = list(combinations_of(study))
    if not combinations:
        raise ConfigError(f"study {study.name}: exclude leaves no cell: remove some of its tables")
    if not tiny and chosen == AS_IN_THE_FILE:  # tiny versions and trials may make rows equal
        _check_effective(study, combinations)
    cells: list[Cell] = []
    seeds = range(study.base.seed, study.base.seed + (1 if tiny and "seeds" not in kept else study.seeds))
    data_seeds: list[int | None] = [*study.data_seeds] or [None]
    for data_seed, seed in itertools.product(
        data_seeds[:1] if tiny and "data_seeds" not in kept else data_seeds, seeds
    ):
        known: set[str] = set()
        attacked = study.audit is not None and seed < study.base.seed + study.audit.seeds and data_seed == data_seeds[0]
        changes = {"seed": seed} if data_seed is None else {"seed": seed, "data.seed": data_seed}
        for choices in combinations:
            labels = {axis: choice.label for axis, choice in choices.items()}
            experiment = experiment_of(study, choices, changes, kept if tiny else None, chosen)
            controls = None
            if study.base.controls:
                of_seed = chosen.over_controls(controls_of(study.base.tiny(kept) if tiny else study.base, experiment))
                controls = fingerprint_of(of_seed)
                if controls not in known:
                    known.add(controls)
                    cells.append(Cell({}, seed, of_seed, controls, data_seed=data_seed))
            attacks = study.audit if attacked else None
            cells.append(Cell(labels, seed, experiment, fingerprint_of(experiment), controls, attacks, data_seed))
    return cells


def _check_effective(study: Study, combinations: Sequence[Mapping[str, Choice]]) -> None:
    """Raise ConfigError if two values of an axis never differ, because a later axis changes the same keys."""
    of_combination = [fingerprint_of(experiment_of(study, one, {}, None, AS_IN_THE_FILE)) for one in combinations]
    for number, axis in enumerate(study.axes):
        changes = {choice.label: choice.changes for choice in axis.choices}
        found: dict[str, dict[tuple[str, ...], str]] = {}
        for choices, identity in zip(combinations, of_combination, strict=True):
            others = tuple(choice.label for name, choice in choices.items() if name != axis.name)
            found.setdefault(choices[axis.name].label, {})[others] = identity
        for (one, ours), (two, theirs) in itertools.combinations(found.items(), 2):
            keys = {key for key in {**changes[one], **changes[two]} if changes[one].get(key) != changes[two].get(key)}
            later = study.axes[number + 1 :]
            if ours == theirs and all(any(other.may_change(key) for other in later) for key in keys):
                raise ConfigError(
                    f"study {study.name}: {axis.name}={one} and {axis.name}={two} are the same experiments, since "
                    "a later axis replaces what they change: remove one, or keep each key in one axis"
                )


def only(study: Study, cells: Sequence[Cell], settings: Sequence[str]) -> list[Cell]:
    """Select cells by labels, together with their controls.

    :param settings: texts ``axis=label``; several labels of an axis are alternatives
    :raises ConfigError: a text is malformed, an axis or label does not exist, or no cell is left
    """
    known = {axis.name: [choice.label for choice in axis.choices] for axis in study.axes}
    wanted: dict[str, set[str]] = {}
    for text in settings:
        axis, separator, label = (part.strip() for part in text.partition("="))
        if not separator or axis not in known:
            raise ConfigError(f"--only requires AXIS=LABEL with an axis of {sorted(known)}, not {text!r}")
        if label not in known[axis]:
            raise ConfigError(f"--only: axis {axis!r} has no label {label!r}; it has: {known[axis]}")
        wanted.setdefault(axis, set()).add(label)
    kept = [all(cell.labels.get(axis) in labels for axis, labels in wanted.items()) for cell in cells]
    needed = {cell.controls for cell, stays in zip(cells, kept, strict=True) if stays and cell.labels}
    if not needed:
        raise ConfigError(f"study {study.name}: --only leaves no cell")
    return [
        cell for cell, stays in zip(cells, kept, strict=True)
        if (stays if cell.labels else cell.fingerprint in needed)
    ]  # fmt: skip


def fingerprint_of(experiment: Experiment) -> str:
    """Return a fingerprint of 32 hexadecimal digits of all values of the experiment except its name and ``[runtime]``.

    The order of keys and keys at their default are ignored, so that results of versions with fewer keys stay valid
    (``Places.check`` detects changed defaults, and changed files that the experiment names). Versions of packages are
    not covered: the results contain them, and the report states if they differ between cells.
    """
    tables, defaults = (one.model_dump(mode="json", exclude={"name", "runtime"}) for one in (experiment, Experiment()))
    return fingerprint(experiment=_other_than(defaults, tables))


def _other_than(defaults: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of nested ``tables`` that differ from ``defaults``."""
    found: dict[str, Any] = {}
    for key in {**defaults, **tables}:
        default, value = defaults.get(key), tables.get(key)
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            value = _other_than(default, value) or default
        if value != default:
            found[key] = value
    return found


def distinct(cells: Sequence[Cell]) -> dict[str, Cell]:
    """Return the first cell of each fingerprint, in order."""
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.fingerprint, cell)
    return found


def combinations_of(study: Study) -> Iterator[dict[str, Choice]]:
    """Yield the choice of each axis for every combination that is not excluded, in order."""
    for choices in itertools.product(*(axis.choices for axis in study.axes)):
        named = {axis.name: choice for axis, choice in zip(study.axes, choices, strict=True)}
        if not study.excludes({axis: choice.label for axis, choice in named.items()}):
            yield named


def experiment_of(
    study: Study,
    choices: Mapping[str, Choice],
    seeds: Mapping[str, int],
    kept: Collection[str] | None,
    chosen: Chosen,
) -> Experiment:
    """Build the experiment of a cell. ``seeds``: its ``seed``, and ``data.seed`` if the study lists some. ``kept``:
    keys that the tiny version leaves unchanged; None for the full one."""
    labels = {axis: choice.label for axis, choice in choices.items()}
    changes = {key: value for choice in choices.values() for key, value in choice.changes.items()}
    try:
        experiment = varied(study.base, changes)
        experiment = chosen.over(experiment if kept is None else experiment.tiny(kept), labels)
        return alone(experiment, seeds)
    except ConfigError as error:
        problem = str(error).removeprefix("experiment: ")
        raise ConfigError(f"study {study.name}, cell {_written(labels)}: {problem}") from error


def alone(experiment: Experiment, seeds: Mapping[str, int]) -> Experiment:
    """Return a single federation with these seeds, without controls and comparisons."""
    return experiment.with_changes({**seeds, "repeats": 1, "controls": [], "compare": []})


def controls_of(base: Experiment, cell: Experiment) -> Experiment:
    """Return the experiment with the controls of ``cell``: no privacy, and the base's rounds and merchants' training.

    Its federation is the control ``fedavg``, with the base's aggregator; if the base does not list it, the run has a
    single round, because a run requires a federation. Controls of other tasks are left out.
    """
    fit = {NEXT_BASKET.name: OF_PURCHASES, RELEVANCE.name: ("bm25",)}.get(cell.data.task, ())
    left_out = {"fedavg", *UNTRAINED} - {*fit}
    wanted = [name for name in base.controls if name not in left_out]
    whole = "fedavg" in base.controls
    local_epochs = base.federation.options.get("local_epochs")
    federation = {
        "method": "fedavg",
        "start": "labels",
        "options": {} if local_epochs is None else {"local_epochs": local_epochs},
        "rounds": base.federation.rounds if whole else 1,
        "participation": base.federation.participation if whole else 1.0,
        "validate_every": base.federation.validate_every,
        "patience": base.federation.patience if whole else None,
    }
    if whole:
        federation |= base.federation.model_dump(include={"aggregator", "aggregator_options"})
        federation |= {"label": "" if base.federation.aggregator == "fedavg" else "fedavg"}
    changes = {
        "controls": wanted,
        "federation": federation,
        "adaptation": {"enabled": False},
        "privacy": NO_PRIVACY,
        "byzantine": {},
        "transport": {},
        "student.by_merchant": [],
        "training.merchants": base.training.merchants.model_dump(mode="json"),
        "training.submodel": base.training.submodel,
    }
    return cell.with_changes(changes)


def _written(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={label}" for axis, label in labels.items())
