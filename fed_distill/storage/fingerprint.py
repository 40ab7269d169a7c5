"""Names for cached results: equal exactly when everything that the result depends on is equal."""

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_distill.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 32


def fingerprint(**parts: Any) -> str:
    """32 hexadecimal digits of the SHA-256 of JSON-ready ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def hash_tensors(into: "hashlib._Hash", tensors: "Mapping[str, Tensor]") -> None:
    """Take names, types, shapes and every bit of ``tensors`` into a hash; their order does not count."""
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        into.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        into.update(value.numpy().reshape(-1).view(np.uint8).data)


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of the files' names and contents."""
    return fingerprint(files=[(path.name, _digest(path)) for path in sorted(paths)])


def named_files(value: Any) -> dict[str, str]:
    """Fingerprints of the files and folders that texts within JSON-ready ``value`` are paths of (texts with a slash or
    a suffix): what a configuration depends on beside its words. ConfigError for one that cannot be read."""
    found = {}
    for text in _texts(value):
        path = Path(text)
        if "/" not in text and not path.suffix:
            continue
        try:
            if path.is_file():
                found[text] = files_fingerprint([path])
            elif path.is_dir():
                found[text] = files_fingerprint(one for one in path.rglob("*") if one.is_file())
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # then it is no path
                raise ConfigError(f"{text} cannot be read: {error.strerror}") from error
    return found


def own_code(name: str) -> str | None:
    """Fingerprint of the sources that an import path ``package.module:name`` leads to, those of all its package or of a
    module that is in none; None for another name. What they import from elsewhere does not count."""
    module, separator, _ = name.partition(":")
    if not separator or not module.replace(".", "_").isidentifier():
        return None
    try:
        spec = find_spec(module.partition(".")[0])
    except ValueError:  # of the program that runs, which is no module
        spec = None
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return sources_fingerprint(Path(folder) for folder in spec.submodule_search_locations)
    return sources_fingerprint([Path(spec.origin)] if spec.has_location and spec.origin else [])


def sources_fingerprint(paths: Iterable[Path]) -> str:
    """Fingerprint of Python files, and of those in folders; what is not there does not count."""
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return files_fingerprint(file for file in files if file.exists())


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
