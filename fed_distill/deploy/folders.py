"""The folders of a deployment: the operator's folder with the server, and one folder per site.

A site's folder contains neither secrets nor executables: keys and scripts are created at the site (``joining``). A
second call adds missing files and keeps the others. Keys are never overwritten; the server's certificate and other
files are, on request only.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fed_distill.data.examples import FederatedData, MerchantData, Task
from fed_distill.data.public_part import PublicPart
from fed_distill.data.splits import PARTS
from fed_distill.deploy import templates
from fed_distill.deploy.admission import Admission
from fed_distill.deploy.bundle import bundle_hash
from fed_distill.deploy.identity import (
    certificate_fingerprint,
    check_site_name,
    make_authority,
    make_server_certificate,
)
from fed_distill.deploy.joining import KEY, join
from fed_distill.deploy.registered import LOCAL
from fed_distill.errors import ConfigError, FedDistillError
from fed_distill.merchant.allowance import Allowance, allowance
from fed_distill.merchant.manifest import Manifest
from fed_distill.privacy.secret import write_private
from fed_distill.storage.files import write_atomic
from fed_distill.storage.versions import versions

ADDRESS = "address"
"""File of the operator's folder with the address of the server."""
_INNER_PORT = 8001
"""Internal port of the server if the one after the public port is not available."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")


@dataclass
class Deployment:
    """The operator's folder.

    assigned: task of the tables that ``deal`` writes for the sites; None if they have their own data. allowed:
    default limits of sites and merchants. imports: import paths that sites allow by default. overwrite: overwrite
    existing files, except keys and certificates. written, kept: files written and kept so far. aside: backups of
    user-edited files that were overwritten.
    """

    folder: Path
    host: str
    port: int
    assigned: Task | None = None
    allowed: Allowance = field(default_factory=lambda: allowance(None))
    imports: Sequence[str] = ()
    overwrite: bool = False
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ConfigError(f"--host requires a name or an address, such as fed.example.org, not {self.host!r}")

    @property
    def address(self) -> str:
        """HOST:PORT, with an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether all sites are on the server's machine, so that nothing is published."""
        return self.host in LOCAL

    @property
    def inner_port(self) -> int:
        """Port that the server listens on, on its machine only; a proxy listens on ``port``."""
        if self.local:
            return self.port
        return self.port + 1 if 1024 <= self.port < 65535 else _INNER_PORT

    def site(self, name: str) -> Path:
        """Return the folder of a site."""
        return self.folder / "sites" / name

    def unallowed(self, sites: Sequence[str]) -> dict[str, list[str]]:
        """Return, by site, the methods in ``allowed`` that its file does not allow, since it was written before."""
        found = {}
        for name in sites:
            allowed = Manifest.read(self.site(name) / "site.toml").limits.rules.methods
            if allowed is not None and (missing := [one for one in self.allowed.methods if one not in allowed]):
                found[name] = missing
        return found

    def write(self, sites: Sequence[str], renew: bool = False) -> None:
        """Write missing files of authority, server and ``sites``.

        :param sites: names of sites
        :param renew: write a new certificate for the server
        :raises ConfigError: a name is invalid or duplicate
        """
        for name in sites:
            check_site_name(name)
            if sites.count(name) > 1:
                raise ConfigError(f"site {name!r} is named twice")
        authority, server = self.folder / "ca", self.folder / "server"
        for private in (self.folder, authority, server, server / "keys", server / "flwr"):
            private.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (authority / "ca.crt").exists():
            make_authority(authority)
            self.written += [authority / "ca.key", authority / "ca.crt"]
        if renew or not (server / "server.crt").exists():
            if not (authority / "ca.key").exists():
                raise ConfigError(f"{authority / 'ca.key'} is missing, which signs certificates: restore it")
            make_server_certificate(authority, server, self.host)
            self.written += [server / "server.key", server / "server.crt"]
        self._write_server(server, (authority / "ca.crt").read_text(encoding="utf-8"))
        for name in sites:
            self._write_site(name)

    def share(self, public: PublicPart, sites: Sequence[str]) -> None:
        """Write the task and the proxy set into the sites' folders, replacing those of another experiment."""
        for name in sites:
            path = self.site(name) / "proxy.json"
            same = _has(path, public)
            (self.kept if same else self.written).append(path)
            if not same:
                public.write(path)

    def deal(self, data: FederatedData, merchants: Mapping[str, Sequence[str]]) -> None:
        """Write each site a table of its ``merchants``, cleaned and split as in a simulation, for a rehearsal."""
        for name, own in merchants.items():
            path = self.site(name) / "data.jsonl"
            if self._is_due(path):
                lines = (line for merchant in own for line in _lines(data, data.merchants[merchant]))
                write_private(path, "".join(lines).encode())

    def rehearse(self, sites: Sequence[str]) -> None:
        """Join as each of ``sites`` in its folder here, for a rehearsal on one machine."""
        for name in sites:
            folder = self.site(name)
            if not (folder / KEY).exists():
                joined = join(folder, name, noise=None)
                Admission(self.folder).admit(joined.key)
                self.written.append(folder / KEY)

    def _write_server(self, server: Path, authority: str) -> None:
        filled = {
            "address": self.address,
            "port": str(self.port),
            "inner": str(self.inner_port),
            "unit": "fed-distill-server.service",
            "proxy_unit": "fed-distill-proxy.service",
            "place": str(server.absolute()),
            "user": str(os.getuid()),
            "programs": str(Path(sys.executable).parent),
            "folder": str(self.folder.absolute()),
            "authority": certificate_fingerprint(server.parent / "ca" / "ca.crt"),
            **templates.releases(),
        }
        self._text(self.folder / ADDRESS, self.address + "\n")
        self._text(self.folder / ".gitignore", "*\n")  # keep keys out of version control
        self._text(server / "ca.crt", authority)
        self._text(server / "start.sh", templates.SERVER_START.substitute(filled), 0o755)
        self._text(server / "register.sh", templates.REGISTER.substitute(filled), 0o755)
        self._text(server / "flwr" / "config.toml", templates.FLWR_CONFIG.substitute(filled))
        service = templates.SERVICE.substitute(filled, title="fed-distill server", start="start.sh", more="")
        self._text(server / filled["unit"], service)
        if not self.local:
            ipv6 = "" if ":" in self.host else "# "  # the proxy does not start on a machine without IPv6
            self._text(server / "nginx.conf", templates.NGINX.substitute(filled, ipv6=ipv6))
            self._text(server / "proxy.sh", templates.PROXY_START.substitute(filled), 0o755)
            own = {"title": "fed-distill proxy", "unit": filled["proxy_unit"], "start": "proxy.sh"}
            service = templates.SERVICE.substitute({**filled, **own}, more=templates.LOW_PORTS)
            self._text(server / filled["proxy_unit"], service)
        compose = templates.SERVER_COMPOSE.substitute(filled, proxy="" if self.local else templates.PROXY_SERVICE)
        self._text(server / "compose.yaml", compose)
        doors = templates.LOCAL_DOORS if self.local else templates.DOORS
        rehearsal = "" if self.assigned is None else templates.REHEARSAL.substitute(filled)
        instructions = templates.OPERATOR_INSTRUCTIONS.substitute(
            filled, doors=doors.substitute(filled), rehearsal=rehearsal
        )
        self._text(self.folder / "INSTRUCTIONS.md", instructions)

    def _write_site(self, name: str) -> None:
        folder = self.site(name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        named = () if self.assigned is None else tuple(_OPTIONAL)[0 if self.assigned.pair else 1 :]
        filled = {
            "name": name,
            "address": self.address,
            "app": bundle_hash(),
            "authority": certificate_fingerprint(self.folder / "ca" / "ca.crt"),
            "versions": "\n".join(f'{package} = "{number}"' for package, number in versions().items()),
            "methods": ", ".join(json.dumps(method) for method in self.allowed.methods),
            "experiment": self.allowed.what,
            "allowed": self.allowed.in_words,
            "texts": f"{f'texts = {json.dumps(self.allowed.texts and self.assigned is not None)}':<22}",
            "imports": f"{f'imports = {json.dumps(list(self.imports))}':<22}",
            "rehearsal": templates.SITE_REHEARSAL if self.assigned is not None else "",
            "units": f"{f'units = {json.dumps(self.allowed.units)}':<22} # {self.allowed.units_note}",
            "max_epsilon": f"{f'max_epsilon = {self.allowed.max_epsilon}':<22} # {self.allowed.epsilon_note}",
            "data": "data.jsonl" if named else "data.csv",
            "secret": f"{_REHEARSAL}\n# {_SECRET}" if named else _SECRET,
            "part": _PART if named else f"# {_PART}",
            "optional": "\n".join(line if role in named else f"# {line}" for role, line in _OPTIONAL.items()),
            **templates.releases(),
        }
        self._text(folder / "ca.crt", (self.folder / "ca" / "ca.crt").read_text(encoding="utf-8"))
        manifest = templates.MANIFEST.substitute(filled)
        self._keep_aside(folder / "site.toml", manifest)
        self._text(folder / "site.toml", manifest)
        self._text(folder / "INSTRUCTIONS.md", templates.SITE_INSTRUCTIONS.substitute(filled))

    def _text(self, path: Path, content: str, mode: int = 0o644) -> None:
        if self._is_due(path):
            write_atomic(path, content)
            path.chmod(mode)

    def _keep_aside(self, path: Path, content: str) -> None:
        """Back up a user-edited file before it is overwritten."""
        if self.overwrite and path.exists() and (before := path.read_bytes()) != content.encode():
            aside = path.with_name(f"{path.name}.old")
            write_atomic(aside, before)
            self.aside.append(aside)

    def _is_due(self, path: Path) -> bool:
        due = self.overwrite or not path.exists()
        (self.written if due else self.kept).append(path)
        return due


_PART = 'part = "part"          # column that says train, valid or test of rows that were cleaned and split before'
_SECRET = 'secret = "noise.key"   # made by `fed-distill sites join`, known to nobody else: keep it'
_REHEARSAL = "rehearsal = true       # made-up data: noise comes from the run's seed and protects nobody"
_OPTIONAL = {
    "pair": 'pair = "pair"          # product or second title, for tasks of two texts',
    "merchant": 'merchant = "merchant"  # whose row it is; without it all are of one merchant, called like the site',
    "group": 'group = "group"        # what must not be split between training and test, such as a product',
}


def is_operators_copy(folder: Path) -> bool:
    """Whether a site's folder is the one written by ``Deployment``, in the operator's own."""
    return (folder.resolve().parent.parent / ADDRESS).exists()


def _has(path: Path, public: PublicPart) -> bool:
    """Whether ``path`` contains this public part."""
    try:
        return path.exists() and PublicPart.read(path).fingerprint == public.fingerprint
    except FedDistillError:
        return False


def _lines(data: FederatedData, merchant: MerchantData) -> Iterator[str]:
    """Yield a merchant's examples as JSON lines with the columns named in ``MANIFEST``."""
    for part in PARTS:
        examples = getattr(merchant, part)
        for row, text in enumerate(examples.texts):
            line = {
                "text": text,
                **({} if examples.pairs is None else {"pair": examples.pairs[row]}),
                "label": data.task.classes[examples.labels[row]],
                "merchant": merchant.name,
                "group": int(examples.groups[row]),
                "part": part,
            }
            yield json.dumps(line, ensure_ascii=False) + "\n"
