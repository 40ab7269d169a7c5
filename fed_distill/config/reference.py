"""Describe the keys of a configuration file: name, type, default, bounds and meaning, read from its classes.

The reference of the documentation and ``fed-distill keys`` share these descriptions.
"""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fed_distill.config.experiment import Experiment
from fed_distill.config.privacy import GAUSSIAN, UNITS, LabelPrivacy, OwnPrivacy, PrivacyConfig
from fed_distill.config.tables import LARGEST

OWN_UNIT = "custom"
"""Stands for the import path of a custom privacy unit in ``KeyDescription.units``."""
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "string",
    "": "value",
}
"""Words for JSON types; a schema without a type allows any value."""
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


@dataclass(frozen=True)
class KeyDescription:
    """One key of a configuration file.

    :ivar name: dotted name, such as ``federation.rounds``; in a list of tables, without a position
        (``teacher.ensemble.model``)
    :ivar table: header of the key's table, such as ``[federation]`` or ``[[teacher.ensemble]]``; empty at the top
    :ivar type: what a value is, in words
    :ivar default: default as in TOML, ``none`` for a key that is not set, ``required`` without a default
    :ivar bounds: limits of a value, in words; empty: none
    :ivar description: meaning
    :ivar units: privacy units that have the key; empty: the key does not depend on ``privacy.unit``
    """

    name: str
    table: str
    type: str
    default: str
    bounds: str
    description: str
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableDescription:
    """One table of a configuration file, with the keys that are not tables themselves.

    :ivar name: dotted name; empty for the top of the file
    :ivar header: its header in the file
    :ivar description: what the table configures
    """

    name: str
    header: str
    description: str
    keys: tuple[KeyDescription, ...]


def keys(root: type[BaseModel] = Experiment) -> list[KeyDescription]:
    """Return the keys of a file whose top is ``root``, table by table. A key with different meanings for different
    privacy units appears once for each."""
    return [key for table in tables(root) for key in table.keys]


def tables(root: type[BaseModel] = Experiment) -> list[TableDescription]:
    """Return the tables of a file whose top is ``root``, in the order of the fields; an outer table is first."""
    return list(_tables(root, "", in_list=False))


def _tables(table: type[BaseModel], name: str, in_list: bool, note: str = "") -> Iterator[TableDescription]:
    """Yield ``table`` and those in it; ``note``: description of the field that has it."""
    header = "" if not name else f"[[{name}]]" if in_list else f"[{name}]"
    inner = {field: _inner(info.annotation) for field, info in table.model_fields.items()}
    own = tuple(_keys(table, name, header, [field for field, found in inner.items() if not found]))
    yield TableDescription(name, header, f"{_summary(table)}{note and f' {note[0].upper()}{note[1:]}.'}", own)
    for field, found in inner.items():
        info = table.model_fields[field]
        dotted = f"{name}.{info.alias or field}" if name else info.alias or field
        if PrivacyConfig in (base for one in found for base in one.__mro__):
            yield from _privacy(dotted)
            continue
        for one in found:
            yield from _tables(one, dotted, get_origin(info.annotation) is list, info.description or "")


def _privacy(name: str) -> Iterator[TableDescription]:
    """Yield the table ``[privacy]``, whose keys depend on its unit, and its inner tables."""
    header = f"[{name}]"
    common = _keys(PrivacyConfig, name, header, list(PrivacyConfig.model_fields))
    keys: dict[KeyDescription, tuple[str, ...]] = dict.fromkeys(common, ())
    inner: dict[TableDescription, tuple[str, ...]] = {}
    units: Mapping[str, type[PrivacyConfig]] = {**UNITS, OWN_UNIT: OwnPrivacy}
    for unit, table in units.items():
        excluded = (*PrivacyConfig.model_fields, *(GAUSSIAN if table is LabelPrivacy else ()))
        own = {field: _inner(info.annotation) for field, info in table.model_fields.items() if field not in excluded}
        for key in _keys(table, name, header, [field for field, found in own.items() if not found]):
            keys[key] = (*keys.get(key, ()), unit)
        for field, found in own.items():
            for described in (one for nested in found for one in _tables(nested, f"{name}.{field}", in_list=False)):
                inner[described] = (*inner.get(described, ()), unit)
    yield TableDescription(name, header, _summary(PrivacyConfig), _for_units(keys))
    for described, having in inner.items():
        yield replace(described, keys=_for_units(dict.fromkeys(described.keys, having)))


def _for_units(keys: Mapping[KeyDescription, tuple[str, ...]]) -> tuple[KeyDescription, ...]:
    return tuple(replace(key, units=units) for key, units in keys.items())


def _keys(table: type[BaseModel], name: str, header: str, fields: list[str]) -> Iterator[KeyDescription]:
    properties = table.model_json_schema()["properties"]
    for field in fields:
        info = table.model_fields[field]
        if info.exclude:  # set by the program, not in a file
            continue
        key = info.alias or field
        schema = properties[key]
        yield KeyDescription(
            name=f"{name}.{key}" if name else key,
            table=header,
            type=_type(schema),
            default=_default(info),
            bounds=_bounds(schema),
            description=info.description or "",
        )


def _inner(annotation: Any) -> list[type[BaseModel]]:
    """Return the tables in an annotation: those of a choice, of a list, or the annotation itself. None of a table with
    names of the user's choice, and none of an experiment within another file, whose keys are described once."""
    if annotation is Experiment or get_origin(annotation) in (dict, Mapping):
        return []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in _inner(part)]


def _summary(table: type[BaseModel]) -> str:
    return inspect.cleandoc(table.__doc__ or "")


def _choices(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the alternatives of a JSON schema, without null: an absent key is its default."""
    found: list[Mapping[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [one for one in found if one.get("type") != "null"]


def _type(schema: Mapping[str, Any], plural: bool = False) -> str:
    """Describe the values of a JSON schema."""
    names = []
    for one in _choices(schema):
        if "$ref" in one:
            names.append("tables" if plural else "table")
        elif "enum" in one or "const" in one:
            given = ", ".join(_toml(value) for value in one.get("enum", [one.get("const")]))
            names.append(f"names: {given}" if plural else f"one of {given}")
        elif one.get("format") == "path":
            names.append("paths" if plural else "path")
        elif one.get("type") == "array":
            parts = dict.fromkeys(_type(part, plural=True) for part in one.get("prefixItems") or [one["items"]])
            names.append(f"list{'s' * plural} of {' and '.join(parts)}")
        elif one.get("type") == "object" and isinstance(one.get("additionalProperties"), Mapping):
            names.append(f"table of {_type(one['additionalProperties'], plural=True)}")
        elif one.get("type") == "object":
            names.append("tables" if plural else "table")
        else:
            names.append(_TYPES[one.get("type", "")] + ("s" if plural and one.get("type") != "boolean" else ""))
    for some, all_ in (("whole number", "number"), ("whole numbers", "numbers")):
        if some in names and all_ in names:
            names.remove(some)
    return " or ".join(dict.fromkeys(names))


def _bounds(schema: Mapping[str, Any]) -> str:
    """Describe the limits of a JSON schema, except the largest integer, which every whole number has."""
    found = []
    for one in _choices(schema):
        limits = {words: one[key] for key, words in _BOUNDS.items() if key in one and abs(one[key]) < LARGEST}
        found += [f"{words} {_number(limit)}" for words, limit in limits.items()]
        if "maxLength" in one:
            found.append(f"at most {one['maxLength']} characters")
        if "pattern" in one:
            found.append(f"matches {one['pattern']}")
    return ", ".join(found)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _default(info: FieldInfo) -> str:
    return "required" if info.is_required() else _toml(info.get_default(call_default_factory=True, validated_data={}))


def _toml(value: Any) -> str:
    """Return a default in one line of TOML."""
    if value is None:
        return "none"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return json.dumps(value.as_posix())
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}" if value else "{}"
    return json.dumps(value, ensure_ascii=False)
