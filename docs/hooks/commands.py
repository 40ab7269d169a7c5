"""The page of the command line, from the commands themselves."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import click
import typer

from docs.hooks.markdown import code, prose, table
from fed_distill.cli.main import app

_INTRODUCTION = """# Command line

`fed-distill COMMAND --help` prints the same. A user's mistake gives one line and exit code 2.
"""


def page() -> str:
    """Return the page of all commands."""
    root = typer.main.get_command(app)
    context = click.Context(root, info_name="fed-distill")
    return f"{_INTRODUCTION}\n" + "\n".join(_section(name, command) for name, command in commands(root, context))


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield the full name of each command, groups without their own."""
    if not isinstance(command, click.Group):
        yield context.command_path, command
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None and not inner.hidden:
            yield from commands(inner, click.Context(inner, info_name=name, parent=context))


def _section(name: str, command: click.Command) -> str:
    parts = [f"## `{name.removeprefix('fed-distill ')}`\n", f"{prose(_paragraphs(command.help or ''))}\n"]
    given = [one for one in command.params if isinstance(one, click.Argument)]
    usage = " ".join([name, *(one.make_metavar(click.Context(command)) for one in given), "[OPTIONS]"])
    parts.append(f"```sh\n{usage}\n{_example(command)}```\n")
    rows = [_row(one, command) for one in command.params]
    parts.append(table(("argument or option", "default", "meaning"), rows) if rows else "")
    return "\n".join(parts)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _example(command: click.Command) -> str:
    return f"{command.epilog.removeprefix('Example: ')}\n" if command.epilog else ""


def _row(one: click.Parameter, command: click.Command) -> tuple[str, str, str]:
    text = prose(_help(one, command))
    if isinstance(one, click.Argument):
        return code(one.make_metavar(click.Context(command))), "required" if one.required else "", text
    assert isinstance(one, click.Option)
    names = code(", ".join((*one.opts, *one.secondary_opts)))
    value = "" if one.is_flag else f" {code(one.make_metavar(click.Context(command)).removesuffix(' RANGE'))}"
    plain = isinstance(one.default, str | int | float | Path) and not isinstance(one.default, bool)
    default = "required" if one.required else code(str(one.default)) if plain else ""
    return names + value, default, text


def _help(one: click.Parameter, command: click.Command) -> str:
    """Return a parameter's help as declared: Typer 0.20 loses that of arguments with click 8.5."""
    declared = get_type_hints(command.callback, include_extras=True).get(one.name or "")
    infos = (info for info in get_args(declared) if isinstance(info, typer.models.ParameterInfo))
    return next((info.help or "" for info in infos), "")
