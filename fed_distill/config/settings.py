"""Settings by dotted key, as on the command line."""

import tomllib
from copy import deepcopy
from typing import Any

from fed_distill.errors import ConfigError


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value`` as on the command line; the value is TOML, or a plain string."""
    key, separator, value = text.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set requires key=value, for example federation.rounds=3, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def set_key(tables: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key in nested tables by its dotted name; raise ConfigError if a part of the name is a value."""
    *parents, last = dotted.split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{dotted}: {parent} is a value, not a table")
    tables[last] = deepcopy(value)  # later keys may write into it
