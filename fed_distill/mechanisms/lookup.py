"""Which mechanism protects what: by the name of a privacy unit, of an experiment's arm, of a finished run."""

import inspect
import math
import sys

from fed_distill.config import Experiment, is_protected
from fed_distill.errors import ConfigError
from fed_distill.mechanisms import MECHANISMS
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Mechanism, Protecting


def mechanism(unit: str) -> Mechanism:
    """The mechanism of a privacy unit, by name or import path.

    Raises ConfigError if there is none, or it could protect less than it says: one of one's own must be of a kind that
    merchants pay for, and state what one example moves. NotAllowed for one that this site's rules do not name.
    """
    factory = MECHANISMS.resolve(unit)
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
    own = factory(unit)
    if not 1.0 <= own.moved_by < math.inf:
        raise ConfigError(
            f"privacy.unit = {unit!r} must say how far one example moves what it noises, in units of its own "
            f"sensitivity: give it moved_by of at least 1, for example moved_by = 2.0, not {own.moved_by:g}"
        )
    return own


def mechanism_of(experiment: Experiment, arm: str | None = None) -> Mechanism:
    """The mechanism of an ``arm``: of a control, or what stays at merchants, that of no privacy. None: of the
    experiment's federations. Raises as ``mechanism`` does."""
    return mechanism(experiment.privacy.unit if arm is None else experiment.unit_of(arm))


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
