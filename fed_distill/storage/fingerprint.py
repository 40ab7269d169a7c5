"""Fingerprints for cache keys: two are equal exactly if all inputs of the cached result are equal."""

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
    """Return the first 32 hexadecimal digits of the SHA-256 of JSON-serializable ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def hash_tensors(into: "hashlib._Hash", tensors: "Mapping[str, Tensor]") -> None:
    """Add names, types, shapes and values of ``tensors`` to a hash; their order is irrelevant."""
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        into.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        into.update(value.numpy().reshape(-1).view(np.uint8).data)


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Return a fingerprint of the names and contents of files."""
    return _fingerprint_of((path, path.name) for path in paths)


def named_files(value: Any) -> dict[str, str]:
    """Return fingerprints of the files and folders that ``value`` refers to.

    A string is treated as a path if it contains a slash or a suffix and the path exists. The content of such a file is
    part of what a configuration depends on.

    :param value: JSON-serializable value
    :returns: fingerprints by path
    :raises ConfigError: a file exists and cannot be read
    """
    found = {}
    for text in _texts(value):
        path = Path(text)
        if "/" not in text and not path.suffix:
            continue
        try:
            if path.is_file():
                found[text] = files_fingerprint([path])
            elif path.is_dir():
                found[text] = _fingerprint_of(_inside(path, "*"))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # too long for a path, so it is not one
                raise ConfigError(f"{text} cannot be read: {error.strerror}") from error
    return found


def own_code(name: str) -> str | None:
    """Return a fingerprint of the source code behind an import path.

    It covers the whole top-level package, or the module if there is no package, but no imports from elsewhere.

    :param name: name of a part; an import path is ``package.module:name``
    :returns: the fingerprint, or None if ``name`` is not an import path
    """
    module, separator, _ = name.partition(":")
    if not separator or not module.replace(".", "_").isidentifier():
        return None
    try:
        spec = find_spec(module.partition(".")[0])
    except ValueError:  # raised for __main__
        spec = None
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return sources_fingerprint(Path(folder) for folder in spec.submodule_search_locations)
    return sources_fingerprint([Path(spec.origin)] if spec.has_location and spec.origin else [])


def sources_fingerprint(paths: Iterable[Path]) -> str:
    """Return a fingerprint of Python files, given directly or in folders; missing paths are ignored."""
    found = (_inside(path, "*.py") if path.is_dir() else [(path, path.name)] for path in paths)
    return _fingerprint_of((file, name) for files in found for file, name in files if file.exists())


def _inside(folder: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    """Yield the files in ``folder``, at any depth, with their names relative to it."""
    for path in folder.rglob(pattern):
        if path.is_file():
            yield path, path.relative_to(folder).as_posix()


def _fingerprint_of(names: Iterable[tuple[Path, str]]) -> str:
    """Return a fingerprint of the contents of files and of the names that they go by."""
    return fingerprint(files=[(name, _digest(path)) for path, name in sorted(names)])


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
