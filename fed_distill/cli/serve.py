"""``fed-distill serve``: serve an exported student over HTTP, and make the keys of its users.

Slow imports are inside the command.
"""

import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from fed_distill.errors import ConfigError


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="folder with serve.toml, or an export", show_default=False)
    ],
    init: Annotated[bool, typer.Option("--init", help="write DIR/serve.toml and print its first key")] = False,
    student: Annotated[
        Path | None, typer.Option(metavar="EXPORT", help="with --init: folder that fed-distill export wrote")
    ] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="INDEX", help="of an export, or with --init: folder of fed-distill index")
    ] = None,
    trained: Annotated[
        Path | None, typer.Option(metavar="RUN", help="of an export, or with --init: run whose student explains scores")
    ] = None,
    new_key: Annotated[
        str | None, typer.Option("--add-key", metavar="NAME", help="add a key to DIR/serve.toml and print it")
    ] = None,
    scopes: Annotated[
        str, typer.Option(help="with --add-key: what the key is for, separated by commas; also index, metrics, admin")
    ] = "score,rank,recommend,search,explain",
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="with --add-key: when it ends, for example 2027-01-31T00:00Z")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.001, help="with --add-key: requests a second; twice as many may come at once")
    ] = 100.0,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="instead of the file's; 0: any free port")] = None,
    logs: Annotated[str, typer.Option(metavar="text|json", help="form of the lines on stderr")] = "text",
) -> None:
    """Serve an exported student over HTTP until stopped; --init writes its settings and access keys."""
    from fed_distill.serving.service_files import add_key, write_serve_file

    beside = {name: path for name, path in (("index", index), ("trained", trained)) if path is not None}
    if init:
        if student is None:
            raise ConfigError("--init writes settings for an export: add --student EXPORT")
        _print_key(write_serve_file(folder, student, beside), "operator")
    elif new_key is not None:
        chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        _print_key(add_key(folder, new_key, chosen, _time(expires), rate), new_key)
    else:
        _run(folder, port, logs, beside)


def _run(folder: Path, port: int | None, logs: str, beside: Mapping[str, Path]) -> None:
    try:
        from fed_distill.serving.running import run_service
        from fed_distill.serving.service_logs import LogStyle, log_service
    except ImportError as error:
        raise ConfigError(f"serving requires the package {error.name}: pip install 'fed-distill[serve]'") from error
    if logs not in get_args(LogStyle):
        raise ConfigError(f"--logs must be text or json, not {logs!r}")
    style = cast(LogStyle, logs)
    log_service(style)
    run_service(folder, port, style, beside)


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--expires {text!r} is not a time: write it as 2027-01-31T00:00Z") from error
    if found.tzinfo is None:
        raise ConfigError(f"--expires {text!r} has no time zone: write {text}Z")
    return found


def _print_key(key: str, name: str) -> None:
    """Print a key to stdout, alone, so that a script can take it; the rest is for people."""
    sys.stderr.write(f"key {name}, which is not stored and not shown again:\n")
    sys.stdout.write(key + "\n")
