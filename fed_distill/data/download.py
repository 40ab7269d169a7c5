"""Where third-party data are found: a given path, the folder ``FED_DISTILL_DATA``, the cache, a verified download.

Downloads go through pooch. The publisher's archive is not ours to pin, so what is verified is the content: its SHA-256
after the differences that we know of (the header line) are taken out.
"""

import gzip
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pooch

from fed_distill.errors import DataError

FOLDER_VARIABLE = "FED_DISTILL_DATA"
CACHE_VARIABLE = "FED_DISTILL_CACHE"


def data_cache() -> Path:
    """Folder of downloaded data: ``FED_DISTILL_CACHE`` if set, else the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("fed-distill")) / "data"


def find(name: str, given: Path | None) -> Path | None:
    """The file ``name``: at the ``given`` path, in the data folder or in the cache.

    It may be plain, have ``.gz`` added, or be alone in a ``.zip`` of its name. A given path is the file or its
    folder; DataError if nothing is there.
    """
    if given is not None:
        if given.is_file():
            return given
        found = _inside(given, name)
        if found is None:
            kinds = " or ".join(path.name for path in _variants(given, name))
            raise DataError(f"{given} has no {kinds}" if given.exists() else f"{given} does not exist")
        return found
    folder = os.environ.get(FOLDER_VARIABLE)
    return (_inside(Path(folder), name) if folder else None) or _inside(data_cache(), name)


def _inside(folder: Path, name: str) -> Path | None:
    return next((path for path in _variants(folder, name) if path.is_file()), None)


def _variants(folder: Path, name: str) -> tuple[Path, ...]:
    return folder / name, folder / f"{name}.gz", (folder / name).with_suffix(".zip")


def fetch(url: str, member_suffix: str, name: str, sha256: str, normalize: Callable[[bytes], bytes]) -> Path:
    """Download the zip at ``url``, verify its member that ends with ``member_suffix`` and cache it as ``name``.

    ``normalize`` maps every known variant of the content to the one whose ``sha256`` is given. Raises DataError
    if there is no network or the content is another.
    """
    target = data_cache() / name
    try:
        with tempfile.TemporaryDirectory() as scratch:
            archive = pooch.retrieve(url, known_hash=None, fname="archive.zip", path=scratch)
            content = normalize(_member(Path(archive), member_suffix))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot download {name} from {url}: {error}. Download it by hand and give its path as data.options.path, "
            f"or put it into the folder that the environment variable {FOLDER_VARIABLE} names"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise DataError(f"{url} holds another {name} than expected: SHA-256 {actual}, not {sha256}; nothing was kept")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(target)
    return target


def _member(archive: Path, suffix: str) -> bytes:
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise DataError(f"the archive has {len(names)} files that end with {suffix}, not one")
        return content.read(names[0])


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, plain, gzipped or the only .csv of a zip; raise DataError if it cannot be read."""
    try:
        if path.suffix == ".zip":
            return _member(path, ".csv").decode("utf-8-sig")
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
