"""Change an experiment: options belong to the part that has them, and a factor multiplies what is set."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fed_distill.config import UNPROTECTED, Experiment, is_protected
from fed_distill.errors import ConfigError

EPSILON, NOISE = "privacy.epsilon", "privacy.noise_multiplier"
NO_PRIVACY: dict[str, Any] = {"unit": UNPROTECTED}
"""The ``[privacy]`` table of an experiment without privacy."""
DEPENDENT: Mapping[str, tuple[tuple[str, Any], ...]] = {
    "data.dataset": (("data.options", {}),),
    "teacher.model": (("teacher.options", {}),),
    "student.model": (("student.options", {}),),
    "byzantine.attack": (("byzantine.options", {}),),
    "federation.method": (("federation.options", {}), ("federation.label", "")),
    "federation.aggregator": (("federation.aggregator_options", {}), ("federation.label", "")),
}
"""For each key that selects a part: keys that are reset to these values if another part is selected."""


@dataclass(frozen=True)
class Factor:
    """A change that multiplies the experiment's own value of a key by ``by``; an integer is rounded, to at least 1."""

    by: float

    def of(self, experiment: Experiment, key: str) -> float:
        """Return the new value; raise ConfigError if the experiment has no number there."""
        value = value_of(experiment, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key} is {'not set' if value is None else repr(value)}, which no factor can multiply")
        return max(1, round(value * self.by)) if isinstance(value, int) else value * self.by


def resolved(experiment: Experiment, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``changes`` with each ``Factor`` replaced by the value that it gives.

    :raises ConfigError: the experiment has no number for a factor
    """
    return {
        key: change.of(experiment, key) if isinstance(change, Factor) else change for key, change in changes.items()
    }


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
        if key in own and own[key] != value_of(experiment, key):
            full = copy.deepcopy(dict(dependents)) | full
    return experiment.with_changes(full)


def _privacy(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes to ``[privacy]``: an infinite ε is no privacy; a new ε and a fixed noise replace each other."""
    if changes.get(EPSILON) == math.inf or not is_protected(changes.get("privacy.unit", "")):
        return {"privacy": dict(NO_PRIVACY)}
    given = [key for key in (EPSILON, NOISE) if key in changes]
    replaced = {NOISE if key == EPSILON else EPSILON: None for key in given} if len(given) == 1 else {}
    return {**replaced, **changes}


def value_of(experiment: Experiment, dotted: str) -> Any:
    """Return the experiment's value of a dotted key; None for an option that is not set."""
    found: Any = experiment
    for name in dotted.split("."):
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, BaseModel) and name in type(found).model_fields:
            found = getattr(found, name)
        else:
            return None
    return found
