"""Checks before the first round; each gives one finding.

They cover keys, certificates, permissions, the identity of the server, versions and ledgers. A certificate that expires
within a month is a warning.
"""

import socket
import ssl
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from fed_distill.deploy.bundle import bundle_hash
from fed_distill.deploy.identity import belongs, is_signed_by, public_half, read_certificate
from fed_distill.deploy.joining import made_elsewhere
from fed_distill.errors import ConfigError, FedDistillError
from fed_distill.methods import METHODS
from fed_distill.privacy.ledger import Ledgers
from fed_distill.storage.versions import versions

SOON = timedelta(days=30)
"""Certificates that expire within this time should be renewed."""
EXACT = ("fed-distill", "flwr")
"""Packages with versions that must equal the server's; differences in others may change the last digits of results."""


@dataclass(frozen=True)
class Finding:
    """The result of a check: location, subject, state, and details or a remedy."""

    place: str
    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str


def checked(place: str, what: str, look: Callable[[], str]) -> Finding:
    """Return a finding from a function that returns details, or raises FedDistillError or OSError for a problem."""
    try:
        return Finding(place, what, "ok", look())
    except FedDistillError as error:
        return Finding(place, what, "problem", str(error))
    except OSError as error:
        return Finding(place, what, "problem", f"{error.filename or what}: {error.strerror or error}")


def certificate(place: str, path: Path, authority: Path | None = None, now: datetime | None = None) -> Finding:
    """Check the dates of a certificate, and that ``authority`` has signed it."""
    what, now = f"certificate {path.name}", datetime.now(UTC) if now is None else now
    try:
        found = read_certificate(path)
        if authority is not None and not is_signed_by(found, read_certificate(authority)):
            return Finding(place, what, "problem", f"not signed by {authority}: use both from one deployment")
    except ConfigError as error:
        return Finding(place, what, "problem", str(error))
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now < begin:
        return Finding(place, what, "problem", f"not valid before {begin:%Y-%m-%d %H:%M} UTC: check the clock")
    if now >= end:
        return Finding(
            place,
            what,
            "problem",
            f"expired on {end:%Y-%m-%d}: the operator renews it with `fed-distill sites init FOLDER --renew`",
        )
    return Finding(place, what, "warning" if end - now < SOON else "ok", f"valid until {end:%Y-%m-%d}")


def secret(place: str, path: Path) -> Finding:
    """Check that only the owner can read or write a file."""

    def look() -> str:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(f"accessible to other users, its mode is {mode:04o}: run chmod 600 {path}")
        return f"mode {mode:04o}"

    return checked(place, f"secret {path.name}", look)


def server_key(place: str, path: Path, certificate: Path) -> Finding:
    """Check that the server's key matches its certificate; otherwise the server does not start."""

    def look() -> str:
        if not belongs(path, certificate):
            raise ConfigError(f"it does not match {certificate}: use both from one `fed-distill sites init`")
        return f"belongs to {certificate.name}"

    return checked(place, f"key {path.name}", look)


def site_key(place: str, path: Path, public: Path | None = None) -> Finding:
    """Check that a site's key has Flower's type, was created in this folder and, if the operator has its ``public``
    key, is the admitted one."""

    def look() -> str:
        half = public_half(path)
        if public is not None and public.read_bytes().split()[:2] != half.split()[:2]:
            raise ConfigError(f"{public} is not its public key: the server would admit another site")
        return "elliptic curve, P-384, made here"

    return made_here(checked(place, f"key {path.name}", look), path.parent, path)


def made_here(found: Finding, folder: Path, key: Path) -> Finding:
    """Return ``found``, or a warning if the key of ``folder`` was created elsewhere, where a copy may remain."""
    told = made_elsewhere(folder, key) if found.state == "ok" else ""
    if not told:
        return found
    remedy = "create new ones with `fed-distill sites join FOLDER --new-keys`, which the operator must admit"
    return Finding(found.place, found.what, "warning", f"{told}: {remedy}")


def app(place: str, pinned: str | None) -> Finding:
    """Check that the SHA-256 of the app that a site accepts is that of the installed package."""
    here = bundle_hash()
    if pinned in (None, here):
        return Finding(place, "app", "ok", f"that of the package installed here, {here[:12]}")
    told = (
        f"site.toml pins {(pinned or '')[:12]}, which differs from the installed package: install the operator's "
        f'release, or, if this is it, set app = "{here}" in [server]'
    )
    return Finding(place, "app", "problem", told)


def server(place: str, address: str, authority: Path, seconds: float = 5.0) -> Finding:
    """Check that the server answers at HOST:PORT over TLS, with a certificate of ``authority`` for that host."""

    def look() -> str:
        with _connected(address, authority, seconds) as secured:
            return f"{address} answers, {secured.version()}"

    return checked(place, "server", look)


def clock(
    place: str, address: str, authority: Path, seconds: float = 5.0, now: Callable[[], float] = time.time
) -> Finding:
    """Compare this clock with the server's, from the date header of an answer.

    Flower signs a site's messages with its time, and the server accepts deviations within these tolerances only.
    """

    def look() -> str:
        with _connected(address, authority, seconds) as secured:
            host = address.rpartition(":")[0]
            secured.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = HTTPResponse(secured, method="HEAD")
            answer.begin()
        date = answer.getheader("Date")
        if date is None:
            return f"{address} sends no date"
        ahead = now() - parsedate_to_datetime(date).timestamp() - 0.5  # the header has whole seconds
        which = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
        if not -TIMESTAMP_TOLERANCE - SYSTEM_TIME_TOLERANCE < ahead < SYSTEM_TIME_TOLERANCE:
            raise ConfigError(
                f"this clock is {which}; the server rejects sites that are {SYSTEM_TIME_TOLERANCE} s ahead or "
                f"{TIMESTAMP_TOLERANCE} s behind: synchronize both with a time server"
            )
        return which

    try:
        return checked(place, "clock", look)
    except (HTTPException, ValueError) as error:
        return Finding(place, "clock", "warning", f"{address} does not answer as Flower's server does: {error}")


@contextmanager
def _connected(address: str, authority: Path, seconds: float) -> Iterator[ssl.SSLSocket]:
    """Open a TLS connection to HOST:PORT; raise ConfigError if it fails or cannot be trusted."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except ssl.SSLError as error:
        raise ConfigError(f"{authority} is not a valid certificate: {error.reason}") from error
    try:
        with (
            socket.create_connection((host, int(port)), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            yield secured
    except ssl.SSLCertVerificationError as error:
        told = f"{address} cannot be trusted: {error.verify_message}"
        if "expired" in error.verify_message:
            told += "; the operator renews it (fed-distill sites init FOLDER --renew) and restarts the server"
        raise ConfigError(told) from error
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{address} cannot be reached: {error}; check that the server runs and its port is open to this machine"
        ) from error


def installed(place: str, wanted: Mapping[str, str]) -> Finding:
    """Compare the installed versions with the server's."""
    here = versions()
    other = [name for name, number in wanted.items() if here.get(name) != number]
    told = "; ".join(f"{name} {here.get(name, 'not installed')}, the server has {wanted[name]}" for name in other)
    if not other:
        return Finding(place, "versions", "ok", ", ".join(f"{name} {here[name]}" for name in EXACT))
    return Finding(place, "versions", "problem" if set(other) & set(EXACT) else "warning", told)


def ledgers(
    place: str,
    folder: Path,
    merchants: Collection[str],
    some_left_out: bool = False,
    answered: Collection[str] = (),
) -> Finding:
    """Check that all ledgers in ``folder`` are intact and belong to the site's ``merchants``.

    :param place: location, for the finding
    :param folder: folder of ledgers
    :param merchants: names of the site's merchants
    :param some_left_out: whether data.merchants selects some of them
    :param answered: file names of merchants that answered private requests, and so must have a ledger
    """

    def look() -> str:
        there = Ledgers(folder).merchants()
        lost = set(answered) - {path.stem for path in Ledgers(folder).files()}
        if lost:
            raise ConfigError(
                f"answers of {min(lost)!r} are stored in {folder}, but its ledger is missing: restore it, because its "
                "budget would count as unspent"
            )
        foreign = [merchant for merchant in there if merchant not in merchants]
        if foreign and some_left_out:
            return f"also of {foreign[0]!r}, which data.merchants excludes: keep it, if it is a merchant of this site"
        if foreign:
            raise ConfigError(
                f"{folder} has a ledger of {foreign[0]!r}, which is not a merchant of this site: move it to its site"
            )
        return f"{len(there)} of {len(merchants)} merchants have a ledger"

    return checked(place, "ledgers", look)


def limits(
    place: str,
    methods: Collection[str] | None,
    imports: Collection[str],
    named: Collection[str],
    merchants: Collection[str],
    texts: bool,
) -> Finding:
    """Check that what a site's policy names exists, since a typo would reject everything, and list what it allows.

    imports: allowed import paths, those of methods included; their packages must be installed, but are not imported.
    texts: whether texts of training examples may be sent.
    """

    def look() -> str:
        for method in () if methods is None else methods:
            if ":" not in method:
                METHODS.resolve(method)
            elif method not in imports:
                raise ConfigError(f"[limits.rules] allows method {method!r}, which is missing in its imports: add it")
        unknown = [name for name in named if name not in merchants]
        if unknown:
            raise ConfigError(f"[limits.merchants] names {unknown[0]!r}, which is not a merchant of this site")
        for path in imports:
            package = path.partition(":")[0].partition(".")[0]
            if PathFinder.find_spec(package) is None:
                raise ConfigError(f"[limits.rules] imports {path!r}, but no package {package!r} is installed here")
        allowed = "all built-in methods" if methods is None else ", ".join(methods) or "no method"
        code = ", ".join(imports) or "none"
        own = f"{counted(len(named), 'merchant')} with limits of their own"
        sent = "; texts of training examples may be sent, with randomized labels" if texts else ""
        return f"{allowed}; code of other packages: {code}; {own}{sent}"

    return checked(place, "limits", look)


def counted(number: int, what: str) -> str:
    """Format a count, such as ``no problems`` and ``1 problem``."""
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
