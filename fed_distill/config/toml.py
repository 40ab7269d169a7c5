"""Read TOML files of users, and summarise validation errors in one line."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fed_distill.errors import ConfigError
from fed_distill.validation import EXPECTED, described

_SUGGESTED = 3
"""Number of keys of one name up to which they are suggested; more would say nothing."""


_TABLES = (".csv", ".csv.gz", ".tsv", ".parquet", ".jsonl")


def read_toml(path: Path | str, what: str) -> dict[str, Any]:
    """Read a TOML file.

    :param what: the file's role in messages, for example ``experiment``
    :raises ConfigError: the file cannot be read, or is not valid TOML
    """
    if Path(path).name.endswith(_TABLES):
        raise ConfigError(f"{path} is a table and no {what}: `fed-distill init {path}` writes an experiment on it")
    try:
        content = Path(path).read_bytes()
    except IsADirectoryError as error:
        raise ConfigError(f"cannot read {what} {path}: {_of_folder(Path(path)) or error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}{_meant(Path(path))}") from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not valid TOML: line {line} is not in UTF-8: save the file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _of_folder(folder: Path) -> str:
    """Say what a folder is that was given in the place of a file; empty if it is no run and no study."""
    for name, command in (("study.toml", "study"), ("experiment.toml", "run")):
        if (folder / name).is_file():
            kind = "a study" if command == "study" else "a run"
            return f"it is the folder of {kind}: use its file, `fed-distill {command} {folder / name}`"
    return ""


def _meant(path: Path) -> str:
    """Return a question for the file of a similar name in the same folder; empty without one."""
    beside = [one.name for one in path.parent.glob("*.toml")] if path.parent.is_dir() and not path.exists() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def check_kind(tables: Mapping[str, Any], path: Path | str, kind: str) -> None:
    """Raise ConfigError, with the right command, if a file is not of a kind.

    :param tables: content of the file
    :param kind: ``experiment``, ``study`` or ``tuning``
    """
    for key, header, found, command in _MARKS:
        if key in tables and kind not in found:
            raise ConfigError(
                f"{path} has {header} and is not {_ARTICLE[kind]} {kind}: use `fed-distill {command} {path}`"
            )
    if kind != "experiment" and not {key for key, *_ in _MARKS} & tables.keys():
        raise ConfigError(
            f"{path} has no [base] and is not a {kind}: if it is an experiment, use `fed-distill run {path}`"
        )


_MARKS = (
    ("axis", "[[axis]]", ("study",), "study"),
    ("search", "[[search]]", ("tuning",), "tune"),
    ("extends", "extends", ("study",), "study"),
    ("base", "[base]", ("study", "tuning"), "study"),
)
"""Keys that only some kinds of files have: the key, as it is written, these kinds, and the command of the first."""
_ARTICLE = {"experiment": "an", "study": "a", "tuning": "a"}


def as_name(text: str) -> str:
    """Return ``text`` as a name of an experiment: other characters than letters, digits, dot, dash and underscore are
    dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:200] or "experiment"


def first_problem(error: ValidationError, table: type[BaseModel] | None = None) -> str:
    """Describe the first error, after its key; positions in a list are counted from 1.

    :param table: the validated table: of an unknown key, the keys that are most like it are suggested, and of a wrong
        value, what is allowed and the default
    """
    problem = error.errors()[0]
    loc, given = problem["loc"], problem["input"]
    where = _dotted(loc)
    if problem["type"] == "extra_forbidden":
        rest = _first_leaf(given)
        near = [] if table is None else _suggested(table, loc, rest)
        return f"unknown key {'.'.join((where, *rest))}" + (f"; did you mean {_listed(near)}?" if near else "")
    message = described(where, problem)
    if problem["type"] == "string_type" and isinstance(given, int | float):
        message += f""": write it in quotes (on a command line within others: '{where}="{given}"')"""
    if table is None or problem["type"] not in EXPECTED:
        return message
    allowed = _allowed(table, loc, named=problem["type"] == "literal_error")
    return f"{message} ({allowed})" if allowed else message


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _first_leaf(given: Any) -> tuple[str, ...]:
    """Return the names that lead to the first key with a value in a table; none for a value."""
    if not isinstance(given, Mapping) or not given:
        return ()
    name, inner = next(iter(given.items()))
    return str(name), *_first_leaf(inner)


def _suggested(table: type[BaseModel], loc: tuple[int | str, ...], rest: tuple[str, ...]) -> list[str]:
    """Return what an unknown key may stand for: the nearest one beside it, or the keys of this name elsewhere, if they
    are few.

    :param loc: place of the unknown key
    :param rest: names of keys in it, if it is a table
    """
    tables = _tables_at(table, loc[:-1])
    beside = difflib.get_close_matches(str(loc[-1]), sorted({name for one in tables for name in one.model_fields}), n=1)
    if beside:
        inner = [one for two in tables if beside[0] in two.model_fields for one in _tables(_annotation(two, beside[0]))]
        for name in rest:
            found = difflib.get_close_matches(name, sorted({key for one in inner for key in one.model_fields}), n=1)
            if not found:
                break
            beside += found
            inner = [
                one for two in inner if found[0] in two.model_fields for one in _tables(_annotation(two, found[0]))
            ]
        return [_dotted((*loc[:-1], *beside))]
    last = rest[-1] if rest else str(loc[-1])
    elsewhere = [name for name in _all_keys(table) if name.rpartition(".")[2] == last]
    return elsewhere if len(elsewhere) <= _SUGGESTED else []


def _all_keys(table: type[BaseModel]) -> list[str]:
    from fed_distill.config.reference import keys  # has an experiment, whose errors are described here

    return list(dict.fromkeys(key.name for key in keys(table)))


def _allowed(table: type[BaseModel], loc: tuple[int | str, ...], named: bool) -> str:
    """Return what a value may be, unless it was ``named`` before, and its default, in words; empty for a table."""
    from fed_distill.config.reference import keys

    names = [part for part in loc if isinstance(part, str) and not part.startswith("<")]
    owners = _tables_at(table, tuple(names[:-1]))
    found = [key for owner in owners for key in keys(owner) if names and key.name == names[-1]]
    if not found:
        return ""
    limits = f", {found[0].bounds}" if found[0].bounds else ""
    return f"{'' if named else f'{found[0].type}{limits}; '}default: {found[0].default}"


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Return a key's dotted name, without the tag of a choice, which is not in the file."""
    return ".".join(str(part + 1 if isinstance(part, int) else part) for part in loc if not str(part).startswith("<"))


def _tables_at(table: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the tables at a place in ``table``; several if they are a choice."""
    found = [table]
    for part in loc:
        if isinstance(part, int):  # in a list, whose tables have been found already
            continue
        if part.startswith("<"):
            found = [one for one in found if part == f"<{one.__name__}>"]
        else:
            found = [inner for one in found if part in one.model_fields for inner in _tables(_annotation(one, part))]
    return found


def _annotation(table: type[BaseModel], field: str) -> Any:
    return table.model_fields[field].annotation


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield all tables in an annotation: those of a choice, of a list, or the annotation itself."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables(part)
