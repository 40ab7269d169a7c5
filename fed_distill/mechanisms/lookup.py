"""Look up the mechanism of a privacy unit, of an arm or of a finished run."""

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
from fed_distill.mechanisms.label import ByLabel


def mechanism(unit: str, settings: ConfigTable | Mapping[str, Any] | None = None) -> Mechanism:
    """Return the mechanism of a privacy unit.

    :param unit: name or import path
    :param settings: settings of the unit, for a custom one ``privacy.options``; None for the defaults
    :raises ConfigError: there is none, or a custom one is incomplete
    :raises NotAllowed: the site's policy does not allow this import path
    """
    factory = build = MECHANISMS.resolve(unit)
    if not is_protected(unit):
        built: Mechanism = factory(unit)
        return built
    if unit not in MECHANISMS and unit in MECHANISMS.values():
        raise ConfigError(f"privacy.unit = {unit!r} is built in: set privacy.unit to its name")
    if not (isinstance(factory, type) and issubclass(factory, AtMerchants | AtServer | ByLabel)):
        raise ConfigError(f"privacy.unit = {unit!r} must be a subclass of AtMerchants or AtServer")
    lacking = sorted(factory.__abstractmethods__) if inspect.isabstract(factory) else []
    if lacking:
        raise ConfigError(f"privacy.unit = {unit!r} lacks {', '.join(lacking)}")
    if isinstance(settings, ConfigTable):
        protecting: Mechanism = build(unit, settings)
        return protecting
    own = _with_options(factory, unit, {} if settings is None else settings)
    if not 1.0 <= own.moved_by < math.inf:
        raise ConfigError(
            f"privacy.unit = {unit!r} must state how far one example changes the noised value, in units of its own "
            f"sensitivity: set moved_by to at least 1, for example moved_by = 2.0, not {own.moved_by:g}"
        )
    return own


def mechanism_of(experiment: Experiment, arm: str | None = None) -> Mechanism:
    """Return the mechanism of an arm.

    :param experiment: the experiment
    :param arm: name of a control or personal student, which have none; None for the experiment's federations
    :raises ConfigError: see ``mechanism``
    """
    privacy = experiment.privacy
    if arm is not None and not experiment.protects(arm):
        return mechanism(UNPROTECTED)
    return mechanism(privacy.unit, privacy.options if isinstance(privacy, OwnPrivacy) else privacy)


def recalled(unit: str) -> Protecting | None:
    """Return the mechanism of a finished run.

    :param unit: privacy unit of the run
    :returns: None without privacy, and for a custom unit that this process has not imported: reading a report must not
        import code that the run named
    """
    if unit not in MECHANISMS and unit.partition(":")[0] not in sys.modules:
        return None
    found = mechanism(unit)
    return found if isinstance(found, Protecting) else None


def protected_by_merchants() -> tuple[str, ...]:
    """Return the built-in units with noise added by the merchants, so that no other party is trusted."""
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
