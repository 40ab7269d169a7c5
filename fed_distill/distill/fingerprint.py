"""Names for cached results: equal exactly when everything that the result depends on is equal."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fed_distill
from fed_distill.data.examples import Examples

_DIGITS = 32
_PACKAGE = Path(fed_distill.__file__).parent
_TRAINING = (
    *(_PACKAGE / name for name in ("data", "distill", "models", "training")),
    *(_PACKAGE.parent / "server" / f"{name}.py" for name in ("schooling", "students", "teaching")),
)
"""Sources of what a student that the server trains depends on."""


def fingerprint(**parts: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of JSON-ready ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def examples_fingerprint(examples: Examples) -> str:
    """Fingerprint of texts, pairs and labels, in order; merchants and groups do not count."""
    return fingerprint(texts=examples.texts, pairs=examples.pairs, labels=examples.labels.tolist())


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of the files' names and contents."""
    return fingerprint(files=[(path.name, _digest(path)) for path in sorted(paths)])


def named_files(value: Any) -> dict[str, str]:
    """Fingerprints of all files and folders (their own files) that texts within JSON-ready ``value`` are paths of: what
    a configuration depends on beside its words."""
    found = {}
    for text in _texts(value):
        path = Path(text)
        if path.is_file():
            found[text] = files_fingerprint([path])
        elif text and path.is_dir():
            found[text] = files_fingerprint(one for one in path.iterdir() if one.is_file())
    return found


def own_code(name: str) -> str | None:
    """Fingerprint of the sources that an import path ``package.module:name`` leads to, those of all its package or of a
    module that is in none; None for another name. What they import from elsewhere does not count."""
    module, separator, _ = name.partition(":")
    spec = find_spec(module.partition(".")[0]) if separator and module.replace(".", "_").isidentifier() else None
    if spec is None:
        return None
    folders = spec.submodule_search_locations
    if folders is not None:
        return files_fingerprint(path for folder in folders for path in Path(folder).rglob("*.py"))
    return files_fingerprint([Path(spec.origin)] if spec.origin is not None else [])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sources() -> str:
    files = [file for path in _TRAINING for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return fingerprint(files=[(str(file.relative_to(_PACKAGE.parent)), _digest(file)) for file in sorted(files)])


TRAINING_CODE = _sources()
"""Fingerprint of this program's own code that trains students, which may change while its version stays; as it was when
this process began."""
