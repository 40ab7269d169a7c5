"""Files that a user writes: read as TOML, and what pydantic finds wrong in them said in one line."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fed_distill.errors import ConfigError


def read_toml(path: Path | str, what: str) -> dict[str, Any]:
    """The tables of a TOML file; ConfigError naming it, as ``what``, if it cannot be read."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, after its key; places in a list are counted from 1."""
    problem = error.errors()[0]
    where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
