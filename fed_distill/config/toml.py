"""Read TOML files of users, and summarise validation errors in one line."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fed_distill.errors import ConfigError
from fed_distill.validation import described


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


def as_name(text: str) -> str:
    """Return ``text`` as a name of an experiment: other characters than letters, digits, dot, dash and underscore are
    dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:200] or "experiment"


def first_problem(error: ValidationError, table: type[BaseModel] | None = None) -> str:
    """Describe the first error, after its key; positions in a list are counted from 1.

    :param table: the validated table, whose keys are suggested for an unknown one
    """
    problem = error.errors()[0]
    where = _dotted(problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = [] if table is None else _near(table, problem["loc"])
        return f"unknown key {where}" + (f"; did you mean {_dotted((*problem['loc'][:-1], *near))}?" if near else "")
    message, given = described(where, problem), problem["input"]
    if problem["type"] == "string_type" and isinstance(given, int | float):
        message += f""": write it in quotes (on a command line within others: '{where}="{given}"')"""
    return message


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Return a key's dotted name, without the tag of a choice, which is not in the file."""
    return ".".join(str(part + 1 if isinstance(part, int) else part) for part in loc if not str(part).startswith("<"))


def _near(table: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the key beside ``loc`` that is most like its last part; none if none is."""
    found = [table]
    for part in loc[:-1]:
        if isinstance(part, int):  # in a list, whose tables have been found already
            continue
        if part.startswith("<"):
            found = [one for one in found if part == f"<{one.__name__}>"]
        else:
            fields = [one.model_fields[part].annotation for one in found if part in one.model_fields]
            found = [inner for field in fields for inner in _tables(field)]
    names = {name for one in found for name in one.model_fields}
    return difflib.get_close_matches(str(loc[-1]), sorted(names), n=1)


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield all tables in an annotation: those of a choice, of a list, or the annotation itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables(part)
