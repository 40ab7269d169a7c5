"""Read TOML files of users, and summarise validation errors in one line."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fed_distill.errors import ConfigError

_IN_TOML = {
    "path_type": "Input should be a path",
    **dict.fromkeys(("dict_type", "model_type"), "Input should be a table"),
}
"""Messages in terms of TOML instead of Python, by pydantic's type of error."""


def read_toml(path: Path | str, what: str) -> dict[str, Any]:
    """Read a TOML file.

    :param what: the file's role in messages, for example ``experiment``
    :raises ConfigError: the file cannot be read, or is not valid TOML
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not valid TOML: line {line} is not in UTF-8: save the file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first error, after its key; positions in a list are counted from 1."""
    problem = error.errors()[0]
    named = [part for part in problem["loc"] if not str(part).startswith("<")]  # the tag of a choice is not in the file
    where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in named)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}"
    message = _IN_TOML.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    given = problem["input"]
    if problem["type"] == "string_pattern_mismatch":
        message += f", not {given!r:.80}"
    if problem["type"] == "string_type" and isinstance(given, int | float):
        message += f""": write it in quotes (on a command line within others: '{where}="{given}"')"""
    return f"{where}: {message}" if where else message
