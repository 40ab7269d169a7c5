"""Join a deployment at a site: create its keys and start scripts.

A site receives a folder with data only: the authority's certificate, ``site.toml``, the proxy set and instructions.
``join``, from the package installed at the site, creates secrets and executables there, and prints one line with the
public key for the operator.
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
"""File beside the keys with their digests and the place of their creation."""
_MACHINE = Path("/etc/machine-id")  # systemd's, unique for each installed system


@dataclass(frozen=True)
class Joined:
    """The result of ``join``.

    key: the site's public key; path: its file. made: names of new keys. aside: backups of overwritten files.
    """

    key: SiteKey
    path: Path
    made: list[str] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)


def join(folder: Path, name: str, noise: Path | None, new_keys: bool = False) -> Joined:
    """Create the missing keys of site ``name`` in ``folder``, and write its start scripts.

    :param folder: the site's folder
    :param name: name of the site
    :param noise: file of the secret for its noise; None in a rehearsal, which has none
    :param new_keys: replace existing keys
    :raises ConfigError: the name is invalid, or an existing key was not created here
    """
    check_site_name(name)
    keys = {KEY: folder / KEY, **({} if noise is None else {noise.name: noise})}
    joined_before = (folder / _MADE).exists()
    for path in keys.values():
        if path.exists() and not new_keys and (path.name == KEY or not joined_before):
            told = made_elsewhere(folder, path)
            if told:
                command = f"fed-distill sites join {shlex.quote(str(folder))} --new-keys"
                raise ConfigError(f"{path}: {told}; create new keys with `{command}`")
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
    """Return why the file ``key`` is not the one that ``join`` created for ``folder``; "" if it is.

    A copy has another inode, and another machine another id. Undetectable is a copy that was made while the original
    stayed in place, and a copy of the whole disk.
    """
    try:
        made = json.loads((folder / _MADE).read_text(encoding="utf-8"))[key.name]
        digest, machine, inode = made["digest"], made["machine"], made["inode"]
    except (OSError, ValueError, KeyError, TypeError):
        return "there is no record of its creation here"
    now = _birth(key)
    if digest != now["digest"]:
        return "it is not the key that was created here"
    if machine != now["machine"]:
        return "it was created on another machine, which may still have it"
    if inode != now["inode"]:
        return "it is a copy of the file that was created here, which may still exist"
    return ""


def _birth(key: Path) -> dict[str, str | int]:
    machine = _MACHINE.read_bytes().strip() if _MACHINE.exists() else b""
    return {
        "digest": hashlib.sha256(key.read_bytes()).hexdigest(),  # of at least 256 random bits, so it reveals nothing
        "machine": hashlib.sha256(b"fed-distill" + machine).hexdigest() if machine else "",
        "inode": key.stat().st_ino,
    }


def _starters(folder: Path, name: str) -> Iterator[tuple[Path, str, int]]:
    """Yield path, content and mode of each executable file, written by this package rather than by the operator."""
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
