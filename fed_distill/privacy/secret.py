"""Secrets for noise and sampling: 256 random bits in a file that only its owner can read.

Whoever has a secret can subtract the noise that was derived from it. It is therefore generated where it is used, never
sent and never written into a report, and must be protected like the data.
"""

import os
import secrets
import stat
from pathlib import Path

from fed_distill.errors import ConfigError

_SHORTEST = 32


def make_secret(path: Path) -> None:
    """Write 256 random bits as hexadecimal digits, readable by the owner only; keep an existing file."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(made, f"{secrets.token_hex(32)}\n".encode())
    try:
        os.link(made, path)  # atomic, and fails if another process was first
    except FileExistsError:
        pass
    finally:
        made.unlink()


def read_secret(path: Path) -> str:
    """Read the secret in ``path``; it is generated on first use.

    :raises ConfigError: it cannot be read, has fewer than 32 characters, or is readable by other users
    """
    try:
        if not path.exists():
            make_secret(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"the secret {path} is readable by other users: run chmod 600 {path}")
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the secret {path}: {error}") from error
    if len(found) < _SHORTEST:
        raise ConfigError(f"{path} has {len(found)} characters; a secret requires at least {_SHORTEST}")
    return found


def write_private(path: Path, content: bytes) -> None:
    """Write a file that is readable by its owner only from the beginning; replace an existing one."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
