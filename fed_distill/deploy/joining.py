"""A site's part in joining a deployment: its own keys, and what starts it.

The operator hands a site a folder with nothing in it but data: the authority's certificate, ``site.toml``, the proxy
set and instructions. ``join``, run by the package that the site's people have installed, makes the secrets and writes
what will be executed there. Back goes one line with the public key.
"""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fed_distill.deploy import templates
from fed_distill.deploy.identity import SiteKey, check_site_name, make_site_key, public_half
from fed_distill.errors import ConfigError
from fed_distill.privacy.secret import make_secret, write_private
from fed_distill.storage.files import write_atomic

KEY = "site.key"
SERVICE_UNIT = "fed-distill-site.service"
_MADE = "keys.made"
"""File beside the keys that says which they are and where they were made."""
_MACHINE = Path("/etc/machine-id")  # systemd's, and another one on each installed system


@dataclass(frozen=True)
class Joined:
    """What ``join`` has left in a site's folder.

    key: the site's public key, and where it is. made: names of the keys that are new. aside: copies of files that were
    there and are written anew.
    """

    key: SiteKey
    path: Path
    made: list[str] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)


def join(folder: Path, name: str, noise: Path | None, new_keys: bool = False) -> Joined:
    """Make the keys of site ``name`` in ``folder`` that are not there, and write what starts it.

    noise: file of the secret that its noise is drawn from; None in a rehearsal, which has none. new_keys: make them
    anew. ConfigError if the name is none, or a key that is there was not made here.
    """
    check_site_name(name)
    keys = {KEY: folder / KEY, **({} if noise is None else {noise.name: noise})}
    joined_before = (folder / _MADE).exists()
    for path in keys.values():
        if path.exists() and not new_keys and (path.name == KEY or not joined_before):
            told = made_elsewhere(folder, path)
            if told:
                command = f"fed-distill sites join {shlex.quote(str(folder))} --new-keys"
                raise ConfigError(f"{path}: {told}; new keys are made by `{command}`")
    made = [key for key, path in keys.items() if new_keys or not path.exists()]
    for key in made:
        if key == KEY:
            make_site_key(folder)
        else:
            keys[key].unlink(missing_ok=True)
            make_secret(keys[key])
    if made:
        write_private(folder / _MADE, json.dumps({key: _birth(path) for key, path in keys.items()}).encode())
    public = SiteKey.parse(f"{public_half(folder / KEY).decode().strip()} {name}")
    joined = Joined(public, folder / f"{name}.pub", made)
    write_atomic(joined.path, f"{public.line}\n")
    for path, content, mode in _starters(folder, name):
        if path.is_symlink() or (path.exists() and path.read_bytes() != content.encode()):
            joined.aside.append(path.rename(path.with_name(f"{path.name}.old")))
        write_atomic(path, content)
        path.chmod(mode)
    return joined


def made_elsewhere(folder: Path, key: Path) -> str:
    """Why the file ``key`` is not taken for the one that ``join`` made for ``folder``; empty if it is.

    A copy is another file (inode), and another machine has another id. What cannot be told: that somebody has copied
    the file and left it in its place, or a disk with all that is on it.
    """
    try:
        made = json.loads((folder / _MADE).read_text(encoding="utf-8"))[key.name]
        digest, machine, inode = made["digest"], made["machine"], made["inode"]
    except (OSError, ValueError, KeyError, TypeError):
        return "there is no record that it was made here"
    now = _birth(key)
    if digest != now["digest"]:
        return "it is not the key that was made here"
    if machine != now["machine"]:
        return "it was made on another machine, where it may still be"
    if inode != now["inode"]:
        return "it is a copy of the file that was made here, which may still be somewhere"
    return ""


def _birth(key: Path) -> dict[str, str | int]:
    machine = _MACHINE.read_bytes().strip() if _MACHINE.exists() else b""
    return {
        "digest": hashlib.sha256(key.read_bytes()).hexdigest(),  # of 256 random bits or more: it tells nothing of them
        "machine": hashlib.sha256(b"fed-distill" + machine).hexdigest() if machine else "",
        "inode": key.stat().st_ino,
    }


def _starters(folder: Path, name: str) -> Iterator[tuple[Path, str, int]]:
    """Each file that somebody may execute, its content and mode; by this package, whatever the operator has sent."""
    filled = {
        "name": name,
        "unit": SERVICE_UNIT,
        "place": str(folder.absolute()),
        "user": str(os.getuid()),
        "programs": str(Path(sys.executable).parent),
        "title": f"fed-distill site {name}",
        **templates.releases(),
    }
    yield folder / "start.sh", templates.SITE_START.substitute(filled), 0o755
    yield folder / SERVICE_UNIT, templates.SERVICE.substitute(filled, start="start.sh", more=""), 0o644
    yield folder / "compose.yaml", templates.SITE_COMPOSE.substitute(filled), 0o644
