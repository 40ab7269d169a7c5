"""Files with a SHA-256 of their own content, verified on every read.

The checksum covers the names of the file and its folder, so that a misplaced file is detected. It is not a signature:
anybody who edits the file can compute a new one. ``storage.checkpoints`` does the same for tensors.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fed_distill.errors import CheckpointError
from fed_distill.storage.files import read_json, replace_folder, strict_json

KEY = "sha256"
SUMS = "SHA256SUMS"
"""Name of the file with a folder's checksums, in the format of ``sha256sum --check``."""
UNSEALED = "it has no checksum: it is damaged, or was written by a version of fed-distill without checksums"
BROKEN = "its checksum does not match: it was damaged, edited or moved"
DIGEST = hashlib.sha256().digest_size
_CHUNK = 2**20


def started(path: Path) -> "hashlib._Hash":
    """Return a hash that covers the name and folder of a file; update it with the content."""
    return hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode())


def sealed_json(value: Mapping[str, Any], path: Path, indent: int | None = 1) -> str:
    """Serialize ``value`` as a JSON object with its checksum, for the file ``path``; errors as of ``strict_json``."""
    plain = json.loads(strict_json(value, str(path)))
    return strict_json({KEY: _of_json(plain, path), **plain}, str(path), indent) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read a file written with ``sealed_json``.

    :raises CheckpointError: the file is missing, incomplete or has a wrong checksum
    """
    found = read_json(path)
    told = found.pop(KEY, None) if isinstance(found, dict) else None
    if told is None:
        raise CheckpointError(f"{path} cannot be used: {UNSEALED}")
    if told != _of_json(found, path):
        raise CheckpointError(f"{path} cannot be used: {BROKEN}")
    content: dict[str, Any] = found
    return content


def checksum(content: bytes, path: Path) -> bytes:
    """Return the checksum of ``content``, to be appended to the file ``path``."""
    hashed = started(path)
    hashed.update(content)
    return hashed.digest()


def check_end(path: Path) -> None:
    """Verify the checksum at the end of a file.

    :raises ValueError: the checksum does not match
    :raises OSError: the file cannot be read
    """
    hashed, left = started(path), path.stat().st_size - DIGEST
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(_CHUNK, left))):
            hashed.update(part)
            left -= len(part)
        if left or file.read() != hashed.digest():
            raise ValueError(BROKEN)


def replace_sealed_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace a folder (see ``replace_folder``) and write the checksums of its files into it."""

    def filled(fresh: Path) -> None:
        fill(fresh)
        (fresh / SUMS).write_text(_sums(fresh, path.name), encoding="utf-8")

    replace_folder(path, filled)


def check_folder(path: Path) -> None:
    """Verify the files of a folder written by ``replace_sealed_folder``.

    :raises CheckpointError: a file is missing, added or changed
    """
    try:
        told = (path / SUMS).read_bytes()
        found = _sums(path, path.name).encode()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
    if told != found:
        raise CheckpointError(f"the files in {path} do not match the checksums in {SUMS}")


def _sums(folder: Path, name: str) -> str:
    lines = [f"# {name}"]
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}")
    return "\n".join(lines) + "\n"


def _of_json(value: Any, path: Path) -> str:
    return checksum(json.dumps(value, sort_keys=True).encode(), path).hex()


def chained(before: str, record: Mapping[str, Any]) -> str:
    """Return the hash of a federation's records up to ``record``.

    :param before: hash up to the previous record; empty for the first
    """
    return hashlib.sha256(f"{before}{strict_json(record, 'metrics.jsonl')}".encode()).hexdigest()
