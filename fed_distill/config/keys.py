"""Look up keys of an experiment by their dotted names."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fed_distill.config.experiment import Experiment
from fed_distill.config.tables import ConfigTable


def has_key(dotted: str) -> bool:
    """Whether an experiment can have this key. For a discriminated table, keys of any choice count. Every key of a
    table of options counts, as only the part that it configures can check it."""
    *tables, last = dotted.split(".")
    found: list[Any] = [Experiment]
    for name in tables:
        found = _inside(found, name)
        if dict in found:
            return True
    return bool(_inside(found, last))


def leaf_keys(changes: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys that ``changes`` set; of a table that is given whole, the keys in it."""
    found: list[str] = []
    for key, value in changes.items():
        inner = leaf_keys({f"{key}.{name}": one for name, one in value.items()}) if isinstance(value, Mapping) else []
        found += inner or [key]
    return found


def is_table(dotted: str) -> bool:
    """Whether a key is a table of the experiment; a table of options counts as a value."""
    found: list[Any] = [Experiment]
    for name in dotted.split("."):
        found = _inside(found, name)
    return any(isinstance(one, type) and issubclass(one, ConfigTable) for one in found)


def _inside(tables: list[Any], name: str) -> list[Any]:
    """Return the possible types of the key ``name`` in any of these tables."""
    fields = [
        table.model_fields[name].annotation
        for table in tables
        if isinstance(table, type) and issubclass(table, ConfigTable) and name in table.model_fields
    ]
    return [one for field in fields for one in _choices(field)]


def _choices(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows; ``dict`` for a dictionary."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _choices(part)]
    return [get_origin(annotation) or annotation]
