"""Files that hold a SHA-256 of their own content, which is verified before the content is used.

It covers the names of the file and its folder too, so that a file in the place of another is found. A checksum is no
signature: whoever edits a file on purpose can write a new one. ``storage.checkpoints`` does the same for tensors.
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
"""The checksums of a folder's files, as ``sha256sum --check`` reads them."""
UNSEALED = "it has no checksum: it is damaged, or from a version of fed-distill that wrote none"
BROKEN = "its checksum is wrong: it was damaged, edited, or put in the place of another file"
DIGEST = hashlib.sha256().digest_size
_CHUNK = 2**20


def started(path: Path) -> "hashlib._Hash":
    """A hash that begins with where a file belongs; its content comes next."""
    return hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode())


def sealed_json(value: Mapping[str, Any], path: Path, indent: int | None = 1) -> str:
    """``value`` as a JSON object that begins with its checksum, for the file ``path``; errors as of ``strict_json``."""
    plain = json.loads(strict_json(value, str(path)))
    return strict_json({KEY: _of_json(plain, path), **plain}, str(path), indent) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Inverse of ``sealed_json``; CheckpointError naming a file that is missing, torn, or not as it was written."""
    found = read_json(path)
    told = found.pop(KEY, None) if isinstance(found, dict) else None
    if told is None:
        raise CheckpointError(f"{path} cannot be used: {UNSEALED}")
    if told != _of_json(found, path):
        raise CheckpointError(f"{path} cannot be used: {BROKEN}")
    content: dict[str, Any] = found
    return content


def checksum(content: bytes, path: Path) -> bytes:
    """The checksum of ``content``, which the file ``path`` has at its end."""
    hashed = started(path)
    hashed.update(content)
    return hashed.digest()


def check_end(path: Path) -> None:
    """ValueError unless the file ``path`` ends in the checksum of what comes before; OSError if it cannot be read."""
    hashed, left = started(path), path.stat().st_size - DIGEST
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(_CHUNK, left))):
            hashed.update(part)
            left -= len(part)
        if left or file.read() != hashed.digest():
            raise ValueError(BROKEN)


def replace_sealed_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """As ``replace_folder``, and write the checksums of all files in the folder into it."""

    def filled(fresh: Path) -> None:
        fill(fresh)
        (fresh / SUMS).write_text(_sums(fresh, path.name), encoding="utf-8")

    replace_folder(path, filled)


def check_folder(path: Path) -> None:
    """CheckpointError unless the files in the folder are those that ``replace_sealed_folder`` wrote there."""
    try:
        told = (path / SUMS).read_bytes()
        found = _sums(path, path.name).encode()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
    if told != found:
        raise CheckpointError(f"the files in {path} are not those that its {SUMS} lists")


def _sums(folder: Path, name: str) -> str:
    lines = [f"# {name}"]
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}")
    return "\n".join(lines) + "\n"


def _of_json(value: Any, path: Path) -> str:
    return checksum(json.dumps(value, sort_keys=True).encode(), path).hex()


def chained(before: str, record: Mapping[str, Any]) -> str:
    """The hash of a federation's lines up to ``record``, from that of all ``before`` it; empty before the first."""
    return hashlib.sha256(f"{before}{strict_json(record, 'metrics.jsonl')}".encode()).hexdigest()
