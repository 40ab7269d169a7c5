"""Atomic file operations: write a temporary file, flush it to disk, then rename it.

A reader never sees a partial file, and a process that is killed leaves either the old or the new content (POSIX
rename(2) is atomic). JSON is strict: NaN and infinity are rejected, because many parsers refuse them.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fed_distill.errors import CheckpointError, TrainingError

_LONGEST_NAME = 150
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORMER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.former\.tmp", re.DOTALL)
"""Name of a folder that ``replace_folder`` has moved aside, with its own name as the group."""


class DiskFull(CheckpointError):
    """There is no space left."""


def as_file_name(name: str) -> str:
    """Return ``name`` as a single valid path component; a long name is truncated and made unique by its hash."""
    quoted = quote(name, safe="").replace(".", "%2E")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    return f"{quoted[:_LONGEST_NAME]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether ``path`` is, or is under, a link that leads out of ``folder``, or a name that cannot be one."""
    try:
        return not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null character
        return True


@contextmanager
def space_for(path: Path, remedy: str = "start again (a run: with --resume)") -> Iterator[None]:
    """Raise DiskFull, naming ``path`` and a remedy, if its disk or quota is full; of nested ones, the outermost names
    both."""
    try:
        yield
    except (OSError, DiskFull) as error:
        if isinstance(error, OSError) and error.errno not in _FULL:
            raise
        raise DiskFull(f"{path} cannot be written because the disk is full: free some space and {remedy}") from error


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its missing parents, and flush them to disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_atomic(path: Path, content: bytes | str, private: bool = False) -> None:
    """Replace the file at ``path`` atomically.

    :param path: file to write
    :param content: new content; text is encoded as UTF-8
    :param private: make the file readable for its owner only
    :raises CheckpointError: the disk is full; the previous file is unchanged
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = _beside(path)
    with space_for(path):
        try:
            with temporary.open("wb") as file:
                if private:
                    os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the folder at ``path`` atomically.

    The old folder is unchanged until ``fill`` returns. It is then moved aside, and put back if the new one cannot take
    its place; of a process that is killed in between, ``remove_leftovers`` puts it back. If several processes replace
    it concurrently, the last one wins.

    :param path: folder to replace
    :param fill: writes the new content into an empty folder
    :raises CheckpointError: the disk is full
    """
    fresh, former = _beside(path), []
    with space_for(path):
        try:
            fresh.mkdir()
            fill(fresh)
            for file in fresh.rglob("*"):
                if file.is_file():
                    _sync(file)
            while not _renamed(fresh, path):
                former.append(_beside(path, "former.tmp"))
                with suppress(FileNotFoundError):  # another process has moved it away
                    os.replace(path, former[-1])
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            for folder in reversed(former):
                _retire(folder, path)
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left in ``folder``; a folder whose new content had not taken its
    place is put back."""
    for path in folder.glob(".*.tmp"):
        former = _FORMER.fullmatch(path.name)
        if former and not (folder / former[1]).exists():
            os.replace(path, folder / former[1])
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, so that a rename in it survives a power failure."""
    _sync(folder)


def strict_json(value: Any, source: str, indent: int | None = None) -> str:
    """Serialize ``value`` as strict JSON.

    :param value: JSON-serializable value
    :param source: name of the file, for the error message
    :raises TrainingError: a number is not finite; the message contains its key
    """
    bad = _not_finite(value, "")
    if bad is not None:
        raise TrainingError(
            f"{source}: {bad[0]} is {bad[1]}, not a finite number: training diverged or the metric was not computed"
        )
    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    :raises CheckpointError: the file is missing or incomplete
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def _renamed(folder: Path, path: Path) -> bool:
    """Rename ``folder`` to ``path``; return False if the target exists."""
    try:
        os.replace(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _retire(former: Path, path: Path) -> None:
    """Remove the folder that was at ``path``, or put it back if there is none now."""
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
    else:
        with suppress(OSError):  # another process has moved it away, or put its own there
            os.replace(former, path)


def _beside(path: Path, suffix: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_finite(value: Any, where: str) -> tuple[str, float] | None:
    if isinstance(value, Mapping):
        children = [(f"{where}.{key}" if where else str(key), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{where}[{index}]", child) for index, child in enumerate(value)]
    elif isinstance(value, (float, np.floating)) and not math.isfinite(value):
        return where or "the value", float(value)
    else:
        return None
    return next((found for name, child in children if (found := _not_finite(child, name)) is not None), None)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
