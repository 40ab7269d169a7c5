"""Which keys an experiment has, by their dotted names."""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fed_distill.config.experiment import Experiment
from fed_distill.config.tables import ConfigTable


def has_key(dotted: str) -> bool:
    """Whether an experiment can have this key; of a table that a key chooses, one that any choice has. What is in a
    table of options is known to whom the options are for, and counts as there."""
    *tables, last = dotted.split(".")
    found: list[Any] = [Experiment]
    for name in tables:
        found = _inside(found, name)
        if dict in found:
            return True
    return bool(_inside(found, last))


def is_table(dotted: str) -> bool:
    """Whether a key is a table of the experiment, and no table of options, which is a value."""
    found: list[Any] = [Experiment]
    for name in dotted.split("."):
        found = _inside(found, name)
    return any(isinstance(one, type) and issubclass(one, ConfigTable) for one in found)


def _inside(tables: list[Any], name: str) -> list[Any]:
    """What the key ``name`` of any of these tables may be."""
    fields = [
        table.model_fields[name].annotation
        for table in tables
        if isinstance(table, type) and issubclass(table, ConfigTable) and name in table.model_fields
    ]
    return [one for field in fields for one in _choices(field)]


def _choices(annotation: Any) -> list[Any]:
    """The types that an annotation allows; of a dictionary ``dict``."""
    if get_origin(annotation) is Annotated:
        return _choices(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _choices(part)]
    return [get_origin(annotation) or annotation]
