"""Write ``serve.toml`` and add keys to it. A key is returned once; the file has its hash."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import get_args

from fed_distill.errors import ConfigError
from fed_distill.serving.api_keys import key_hash, new_key
from fed_distill.serving.exported_folder import ExportDescription
from fed_distill.serving.service_config import SERVE, Scope, validated_text
from fed_distill.storage.files import make_folder, write_atomic

SCOPES: tuple[Scope, ...] = get_args(Scope)
USE: tuple[Scope, ...] = ("score", "rank", "recommend", "search", "explain")
"""Scopes of a key unless told otherwise: all but those of an operator."""
RATE = 100.0
"""Requests a second of a key unless told otherwise."""


def write_serve_file(folder: Path, student: Path, beside: Mapping[str, Path] | None = None) -> str:
    """Write ``serve.toml`` for the export ``student`` into ``folder``, with a key of all scopes, and return the key.

    :param beside: further folders by their key of ``[service]``: ``index`` and ``trained``
    :raises ConfigError: there is a file already
    :raises ModelError: ``student`` is not an export
    """
    path = folder / SERVE
    if path.exists():
        raise ConfigError(f"{path} exists: add a key with fed-distill serve {folder} --add-key NAME, or edit it")
    ExportDescription.read(student)
    make_folder(folder)
    lines = [
        "# Settings of fed-distill serve; docs/how-to/serving.md has them all. Keys are read again when this changes."
    ]
    lines.append("[service]")
    for name, found in {"student": student, **(beside or {})}.items():
        place = os.path.relpath(os.path.abspath(found), folder.resolve())  # a link stays one: it may be switched
        lines.append(f"{name} = {json.dumps(place, ensure_ascii=False)}")
    if "index" not in (beside or {}):
        lines.append('# index = "FOLDER"   # of fed-distill index, for /search')
    if "trained" not in (beside or {}):
        lines.append('# trained = "RUN"    # whose student explains scores, for /explain')
    text = "\n".join([*lines, 'variant = "float32"', 'host = "127.0.0.1"', "port = 8080", ""])
    text, key = _with_key(path, text, "operator", SCOPES, None, RATE)
    write_atomic(path, text, private=True)
    return key


def add_key(
    folder: Path, name: str, scopes: Sequence[str] = USE, expires: datetime | None = None, rate: float = RATE
) -> str:
    """Add a key to ``serve.toml`` of ``folder`` and return it.

    :param expires: with a time zone; None: never
    :param rate: requests a second; twice as many may come at once
    :raises ConfigError: there is no file, it is invalid, or the name is taken or invalid
    """
    path = folder / SERVE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: write it with fed-distill serve {folder} --init") from error
    text, key = _with_key(path, text, name, scopes, expires, rate)
    write_atomic(path, text, private=True)
    return key


def _with_key(
    path: Path, text: str, name: str, scopes: Sequence[str], expires: datetime | None, rate: float
) -> tuple[str, str]:
    """Return the file with a key more, checked as it will be read, and the key."""
    key = new_key()
    lines = [
        "[[key]]",
        f"name = {json.dumps(name)}",
        f'sha256 = "{key_hash(key)}"',
        f"scopes = {json.dumps(list(scopes))}",
        f"rate = {rate}",
        f"burst = {max(1, math.ceil(2 * rate))}",
        *([] if expires is None else [f"expires = {expires.isoformat()}"]),
    ]
    changed = "\n".join([text.rstrip("\n"), "", *lines, ""])
    validated_text(path, changed)
    return changed, key
