"""Find third-party data: at a given path, in the folder ``FED_DISTILL_DATA``, in the cache, or by download.

Downloads use pooch. The publisher may repack the archive, so the SHA-256 is that of the content, after known
differences between versions (the header line) are normalized.
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
    """Return the folder of downloaded data: ``FED_DISTILL_CACHE`` if set, else the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("fed-distill")) / "data"


def find(name: str, given: Path | None) -> Path | None:
    """Find the file ``name`` at the ``given`` path, in the data folder or in the cache.

    The file may be plain, gzipped (``.gz``) or the only member of a ``.zip`` of the same name.

    :param name: file name
    :param given: the file or its folder
    :returns: path of the file, or None if it is neither in the data folder nor in the cache
    :raises DataError: ``given`` does not exist or does not contain the file
    """
    if given is not None:
        if given.is_file():
            return given
        found = _inside(given, name)
        if found is None:
            kinds = " or ".join(path.name for path in _variants(given, name))
            raise DataError(f"{given} does not contain {kinds}" if given.exists() else f"{given} does not exist")
        return found
    folder = os.environ.get(FOLDER_VARIABLE)
    return (_inside(Path(folder), name) if folder else None) or _inside(data_cache(), name)


def _inside(folder: Path, name: str) -> Path | None:
    return next((path for path in _variants(folder, name) if path.is_file()), None)


def _variants(folder: Path, name: str) -> tuple[Path, ...]:
    return folder / name, folder / f"{name}.gz", (folder / name).with_suffix(".zip")


def fetch(url: str, member_suffix: str, name: str, sha256: str, normalize: Callable[[bytes], bytes]) -> Path:
    """Download a zip, verify one member and cache it as ``name``.

    :param url: address of the zip
    :param member_suffix: end of the member's name
    :param name: file name in the cache
    :param sha256: expected SHA-256 of the normalized content
    :param normalize: maps every known version of the content to one
    :raises DataError: the download failed or the content does not match
    """
    target = data_cache() / name
    try:
        with tempfile.TemporaryDirectory() as scratch:
            archive = pooch.retrieve(url, known_hash=None, fname="archive.zip", path=scratch)
            content = normalize(_member(Path(archive), member_suffix))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"cannot download {name} from {url}: {error}. Download it manually and set data.options.path to its path, "
            f"or move it to the folder in the environment variable {FOLDER_VARIABLE}"
        ) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise DataError(f"{name} from {url} does not match: SHA-256 {actual}, expected {sha256}; nothing was stored")
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
    """Read a UTF-8 text file: plain, gzipped or the only .csv of a zip.

    :raises DataError: it cannot be read
    """
    try:
        if path.suffix == ".zip":
            return _member(path, ".csv").decode("utf-8-sig")
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, gzip.BadGzipFile, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
