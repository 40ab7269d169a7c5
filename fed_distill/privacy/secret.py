"""Secrets that noise and sampling coins are drawn from: 256 random bits in a file that its owner alone may read.

Whoever has a secret can take the noise off that was drawn from it. So it is made where it is used, it is never sent and
never written into a report, and a copy of it is as good as the data.
"""

import os
import secrets
import stat
from pathlib import Path

from fed_distill.errors import ConfigError

_SHORTEST = 32


def make_secret(path: Path) -> None:
    """Write 256 random bits as hexadecimal digits, for their owner alone; a file that is there by now is left alone."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_private(made, f"{secrets.token_hex(32)}\n".encode())
    try:
        os.link(made, path)  # all of it at once, and never over another process's
    except FileExistsError:
        pass
    finally:
        made.unlink()


def read_secret(path: Path) -> str:
    """The secret in ``path``, made when it is first read, since who made it for somebody else would know it.

    Raises ConfigError if it cannot be read, is shorter than 32 characters, or others than its owner may read it.
    """
    try:
        if not path.exists():
            make_secret(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"others than its owner may read the secret {path}: run chmod 600 {path}")
        found = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the secret {path}: {error}") from error
    if len(found) < _SHORTEST:
        raise ConfigError(f"{path} has {len(found)} characters, and a secret has {_SHORTEST} or more")
    return found


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody but its owner may read, not even for an instant; an existing one is replaced."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
