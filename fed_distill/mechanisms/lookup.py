"""Which mechanism protects what: by the name of a privacy unit, of an experiment's arm, of a finished run."""

import inspect
import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fed_distill.config import UNPROTECTED, Experiment, OwnPrivacy, is_protected
from fed_distill.config.tables import ConfigTable
from fed_distill.config.toml import first_problem
from fed_distill.errors import ConfigError
from fed_distill.mechanisms import MECHANISMS
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Mechanism, Protecting


def mechanism(unit: str, settings: ConfigTable | Mapping[str, Any] | None = None) -> Mechanism:
    """The mechanism of a privacy unit, by name or import path, with its ``settings``, of one's own as in
    ``privacy.options``; None: with those that it has by default.

    Raises ConfigError if there is none, or it could protect less than it says: one of one's own must be of a kind that
    merchants pay for, and state what one example moves. NotAllowed for one that this site's rules do not name.
    """
    factory = build = MECHANISMS.resolve(unit)
    if not is_protected(unit):
        built: Mechanism = factory(unit)
        return built
    if unit not in MECHANISMS and unit in MECHANISMS.values():
        raise ConfigError(f"privacy.unit = {unit!r} has a name of its own: use that")
    if not (isinstance(factory, type) and issubclass(factory, AtMerchants | AtServer)):
        raise ConfigError(f"privacy.unit = {unit!r} is no subclass of AtMerchants or AtServer, by which merchants pay")
    lacking = sorted(factory.__abstractmethods__) if inspect.isabstract(factory) else []
    if lacking:
        raise ConfigError(f"privacy.unit = {unit!r} lacks {', '.join(lacking)}")
    if isinstance(settings, ConfigTable):
        protecting: Mechanism = build(unit, settings)
        return protecting
    own = _with_options(factory, unit, {} if settings is None else settings)
    if not 1.0 <= own.moved_by < math.inf:
        raise ConfigError(
            f"privacy.unit = {unit!r} must say how far one example moves what it noises, in units of its own "
            f"sensitivity: give it moved_by of at least 1, for example moved_by = 2.0, not {own.moved_by:g}"
        )
    return own


def mechanism_of(experiment: Experiment, arm: str | None = None) -> Mechanism:
    """The mechanism of an ``arm``: of a control, or what stays at merchants, that of no privacy. None: of the
    experiment's federations. Raises as ``mechanism`` does."""
    privacy = experiment.privacy
    if arm is not None and not experiment.protects(arm):
        return mechanism(UNPROTECTED)
    return mechanism(privacy.unit, privacy.options if isinstance(privacy, OwnPrivacy) else privacy)


def recalled(unit: str) -> Protecting | None:
    """The mechanism of a unit that a finished run was protected by; None for no privacy, and for one of somebody's own
    that this process has not imported: whoever reads a report need not have the code that its run named, or trust it.
    """
    if unit not in MECHANISMS and unit.partition(":")[0] not in sys.modules:
        return None
    found = mechanism(unit)
    return found if isinstance(found, Protecting) else None


def protected_by_merchants() -> tuple[str, ...]:
    """The built-in units whose noise a merchant adds itself, so that it trusts nobody else."""
    return tuple(unit for unit in MECHANISMS if isinstance(mechanism(unit), AtMerchants))


def _with_options(factory: type[Protecting], unit: str, options: Mapping[str, Any]) -> Protecting:
    """A unit with settings from a table, which its field ``settings`` says the keys of. ConfigError for a wrong one."""
    try:
        return _adapter(factory).validate_python({"name": unit, "settings": options} if options else {"name": unit})
    except ValidationError as error:
        problem = first_problem(error).replace("settings", "privacy.options", 1)
        raise ConfigError(f"privacy.unit = {unit!r}: {problem}") from error


@lru_cache(maxsize=8)
def _adapter(factory: type[Protecting]) -> TypeAdapter[Protecting]:
    return TypeAdapter(factory)
