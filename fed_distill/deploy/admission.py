"""Admission of sites: public keys in the operator's folder, and their registration at the server.

``server/keys/NAME.pub`` is an admitted site. ``server/revoked/`` contains keys that are never admitted again: Flower
remembers every registered key, and this folder does so for a new server too.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from fed_distill.config.toml import read_toml
from fed_distill.deploy.identity import SiteKey
from fed_distill.deploy.registered import UNREGISTERED, NoAnswer, Node, nodes, register, unregister
from fed_distill.errors import ConfigError
from fed_distill.storage.files import write_atomic


class Admission:
    """The admitted sites of the deployment in the operator's ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._server = folder / "server"
        self._keys, self._revoked = self._server / "keys", self._server / "revoked"
        self.authority = self._server / "ca.crt"

    @property
    def control(self) -> str:
        """HOST:PORT of Flower's control API on this machine, from ``server/flwr``."""
        path = self._server / "flwr" / "config.toml"
        try:
            return str(read_toml(path, "Flower's connection in")["superlink"]["prod"]["address"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} has no address in [superlink.prod]") from error

    def admitted(self) -> list[SiteKey]:
        """Return the keys of admitted sites, by name."""
        return [SiteKey.read(path) for path in sorted(self._keys.glob("*.pub"))]

    def revoked(self) -> list[SiteKey]:
        """Return the revoked keys."""
        return [SiteKey.read(path) for path in sorted(self._revoked.glob("*.pub"))]

    def admit(self, key: SiteKey, replace: bool = False) -> None:
        """Admit a site by its key.

        :param key: the site's public key
        :param replace: revoke the site's previous key
        :raises ConfigError: the key is another site's or was revoked, or the site has another key
        """
        if any(key.encoded == one.encoded for one in self.revoked()):
            raise ConfigError(
                f"this key of site {key.name} was revoked and cannot be admitted again: run "
                "`fed-distill sites join FOLDER --new-keys` at the site"
            )
        admitted = {known.name: known for known in self.admitted()}
        before = admitted.pop(key.name, key)
        for known in admitted.values():
            if known.encoded == key.encoded:
                raise ConfigError(f"this is the key of site {known.name}: each site requires its own")
        if before.encoded != key.encoded:
            if not replace:
                raise ConfigError(
                    f"site {key.name} has another key, {before.fingerprint}: ask its staff whether they created a "
                    "new one, then add --replace"
                )
            self.revoke(key.name)
        self._keys.mkdir(exist_ok=True, mode=0o700)
        write_atomic(self._keys / f"{key.name}.pub", f"{key.line}\n")

    def revoke(self, name: str) -> SiteKey:
        """Revoke the key of a site; raise ConfigError if it has none."""
        path = self._keys / f"{name}.pub"
        if path not in self._keys.glob("*.pub"):
            known = ", ".join(key.name for key in self.admitted())
            raise ConfigError(f"site {name!r} is not admitted; {f'admitted are {known}' if known else 'no site is'}")
        key = SiteKey.read(path)
        self._revoked.mkdir(exist_ok=True, mode=0o700)
        path.rename(self._revoked / f"{name}.{key.fingerprint[7:23].replace('/', '_')}.pub")
        return key

    def settle(self, names: Collection[str] | None = None, wait: float = 0.0) -> Iterator[str]:
        """Unregister revoked keys at the server and register admitted sites; yield a line for each change.

        :param names: register these sites only; None for all
        :param wait: seconds to wait for the server
        :raises ConfigError: the server does not answer or rejects a key
        """
        known = self._nodes(wait)
        for key in self.revoked():
            node = known.get(key.pem)
            if node is not None and node.status != UNREGISTERED:
                unregister(self.control, self.authority, node)
                yield f"{key.name.rpartition('.')[0]}: {key.fingerprint} was unregistered"
        for key in self.admitted():
            if names is not None and key.name not in names:
                continue
            node = known.get(key.pem)
            if node is None:
                register(self.control, self.authority, key)
            elif node.status == UNREGISTERED:
                raise ConfigError(
                    f"the server has unregistered the key of site {key.name} and never accepts it again: run "
                    "`fed-distill sites join FOLDER --new-keys` at the site, and admit its new key with --replace"
                )
            yield f"{key.name}: registered{'' if node is None else ' before'}"

    def _nodes(self, wait: float) -> Mapping[bytes, Node]:
        until = time.monotonic() + wait
        while True:
            try:
                return nodes(self.control, self.authority)
            except NoAnswer:
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)
