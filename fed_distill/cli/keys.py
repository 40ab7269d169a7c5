"""``fed-distill keys``: what the keys of an experiment mean, and a JSON schema for editors.

``fed-distill explain`` is about a student's scores, and ``fed-distill config`` prints the keys of one file. This
command lists what there is, as ``methods`` and ``models`` do.
"""

import difflib
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fed_distill.config.reference import KeyDescription


def keys(
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", help="a key such as federation.rounds, or a table such as federation"),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="print the JSON schema of an experiment, by which editors complete keys")
    ] = False,
) -> None:
    """Describe a key of an experiment, the keys of a table, or all: type, limits, default and meaning."""
    from fed_distill.config.reference import keys as described

    if schema:
        if key is not None:
            raise ConfigError("--schema is of a whole experiment: leave out the key")
        from fed_distill.config.schema import experiment_schema

        sys.stdout.write(json.dumps(experiment_schema(), indent=2, ensure_ascii=False) + "\n")
        return
    known = described()
    exact = [one for one in known if one.name == key]
    if exact:
        _print_one(exact)
        return
    inside = [one for one in known if key is None or one.name.startswith(f"{key}.")]
    if not inside and key is not None and "options" in key.split("."):
        raise ConfigError(
            f"{key}: options are those of a method, model or dataset: `fed-distill methods NAME`, `fed-distill models "
            "NAME` and `fed-distill data list NAME` describe them"
        )
    if not inside:
        raise ConfigError(f"there is no key {key}{_meant(str(key), known) or '.'} `fed-distill keys` lists all")
    _print_table(inside)


def _meant(key: str, known: "Sequence[KeyDescription]") -> str:
    names = list(dict.fromkeys(one.name for one in known))
    last = difflib.get_close_matches(key.rpartition(".")[2], {name.rpartition(".")[2] for name in names}, n=1)
    near = difflib.get_close_matches(key, names, n=3) or [name for name in names if name.rpartition(".")[2] in last][:3]
    return f"; did you mean {', '.join(near)}?" if near else ""


def _print_one(found: "Sequence[KeyDescription]") -> None:
    """Print a key, once for each meaning that it has for different privacy units."""
    console = Console()
    for one in found:
        lines = [("key", one.name), ("meaning", one.description), ("type", one.type), ("limits", one.bounds)]
        lines += [("default", one.default), ("table", one.table or "top of the file"), ("only with", _units(one))]
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in lines:
            if value:
                table.add_row(name, escape(value))
        console.print(table)


def _print_table(found: "Sequence[KeyDescription]") -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("key", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for one in found:
        units = f" ({_units(one)})" if one.units else ""
        table.add_row(escape(one.name), escape(one.default), escape(f"{one.description}{units}"))
    Console().print(table)


def _units(one: "KeyDescription") -> str:
    return f"privacy.unit = {', '.join(one.units)}" if one.units else ""
