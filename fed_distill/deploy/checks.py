"""What must be right before the first round, each looked at by itself and told in one line.

Keys and certificates, who may read them, whether the server answers as itself, versions, ledgers. What is true now may
be false tomorrow: a certificate that ends within a month is a warning already.
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
"""A certificate that ends within this time should be made anew."""
EXACT = ("fed-distill", "flwr")
"""Packages that must be the server's very version; of others a difference may move the last digits of a result."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: where, what, how it is, and what is to be done about it or known of it."""

    place: str
    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str


def checked(place: str, what: str, look: Callable[[], str]) -> Finding:
    """A finding from a function that tells what is right, or raises FedDistillError or OSError for what is wrong."""
    try:
        return Finding(place, what, "ok", look())
    except FedDistillError as error:
        return Finding(place, what, "problem", str(error))
    except OSError as error:
        return Finding(place, what, "problem", f"{error.filename or what}: {error.strerror or error}")


def certificate(place: str, path: Path, authority: Path | None = None, now: datetime | None = None) -> Finding:
    """The dates of a certificate, and whether ``authority`` has signed it."""
    what, now = f"certificate {path.name}", datetime.now(UTC) if now is None else now
    try:
        found = read_certificate(path)
        if authority is not None and not is_signed_by(found, read_certificate(authority)):
            return Finding(place, what, "problem", f"it was not made with {authority}: put both from one deployment")
    except ConfigError as error:
        return Finding(place, what, "problem", str(error))
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now < begin:
        return Finding(place, what, "problem", f"not valid before {begin:%Y-%m-%d %H:%M} UTC: is this clock right?")
    if now >= end:
        return Finding(
            place,
            what,
            "problem",
            f"expired on {end:%Y-%m-%d}: the operator makes a new one by `fed-distill sites init FOLDER --renew`",
        )
    return Finding(place, what, "warning" if end - now < SOON else "ok", f"valid until {end:%Y-%m-%d}")


def secret(place: str, path: Path) -> Finding:
    """Whether none but the owner may read or write a file."""

    def look() -> str:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(f"others may use it, its mode is {mode:04o}: chmod 600 {path}")
        return f"mode {mode:04o}"

    return checked(place, f"secret {path.name}", look)


def server_key(place: str, path: Path, certificate: Path) -> Finding:
    """Whether the server's key is that of its certificate: with another one it does not start."""

    def look() -> str:
        if not belongs(path, certificate):
            raise ConfigError(f"it is not the key of {certificate}: put both from one `fed-distill sites init`")
        return f"belongs to {certificate.name}"

    return checked(place, f"key {path.name}", look)


def site_key(place: str, path: Path, public: Path | None = None) -> Finding:
    """Whether a site's key is of Flower's kind, was made in this folder and, where the operator has its ``public``
    half, is the one that is let in."""

    def look() -> str:
        half = public_half(path)
        if public is not None and public.read_bytes().split()[:2] != half.split()[:2]:
            raise ConfigError(f"{public} is not its public half: the server would let somebody else in")
        return "elliptic curve, P-384, made here"

    return made_here(checked(place, f"key {path.name}", look), path.parent, path)


def made_here(found: Finding, folder: Path, key: Path) -> Finding:
    """``found`` of a key that is fine; a warning if that of ``folder`` was made elsewhere, where it may still lie."""
    told = made_elsewhere(folder, key) if found.state == "ok" else ""
    if not told:
        return found
    remedy = "`fed-distill sites join FOLDER --new-keys` makes others, which the operator admits"
    return Finding(found.place, found.what, "warning", f"{told}: {remedy}")


def app(place: str, pinned: str | None) -> Finding:
    """Whether the app that a site accepts, by its SHA-256, is that of the package installed here, which will run."""
    here = bundle_hash()
    if pinned in (None, here):
        return Finding(place, "app", "ok", f"that of the package installed here, {here[:12]}")
    told = (
        f"site.toml pins {(pinned or '')[:12]}, and the package installed here is another one: install the operator's "
        f'release, or, if this is it, put app = "{here}" into [server]'
    )
    return Finding(place, "app", "problem", told)


def server(place: str, address: str, authority: Path, seconds: float = 5.0) -> Finding:
    """Whether the server answers at HOST:PORT, over TLS, with a certificate for that host by ``authority``."""

    def look() -> str:
        with _connected(address, authority, seconds) as secured:
            return f"{address} answers, {secured.version()}"

    return checked(place, "server", look)


def clock(
    place: str, address: str, authority: Path, seconds: float = 5.0, now: Callable[[], float] = time.time
) -> Finding:
    """Whether this clock is near enough to the server's, by the date in an answer of its, for Flower to let a site in.

    Flower signs what a site sends with the time there, and the server believes it within these tolerances only.
    """

    def look() -> str:
        with _connected(address, authority, seconds) as secured:
            host = address.rpartition(":")[0]
            secured.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = HTTPResponse(secured, method="HEAD")
            answer.begin()
        date = answer.getheader("Date")
        if date is None:
            return f"{address} does not tell its time"
        ahead = now() - parsedate_to_datetime(date).timestamp() - 0.5  # a date has whole seconds
        which = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
        if not -TIMESTAMP_TOLERANCE - SYSTEM_TIME_TOLERANCE < ahead < SYSTEM_TIME_TOLERANCE:
            raise ConfigError(
                f"this clock is {which}, and no site is let in that is {SYSTEM_TIME_TOLERANCE} s ahead or "
                f"{TIMESTAMP_TOLERANCE} s behind: set both by a time server"
            )
        return which

    try:
        return checked(place, "clock", look)
    except (HTTPException, ValueError) as error:
        return Finding(place, "clock", "warning", f"{address} does not answer as Flower's server does: {error}")


@contextmanager
def _connected(address: str, authority: Path, seconds: float) -> Iterator[ssl.SSLSocket]:
    """A connection to HOST:PORT; ConfigError if there is none, or none that can be trusted."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except ssl.SSLError as error:
        raise ConfigError(f"{authority} is no certificate that could be trusted: {error.reason}") from error
    try:
        with (
            socket.create_connection((host, int(port)), timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            yield secured
    except ssl.SSLCertVerificationError as error:
        told = f"{address} is not to be trusted: {error.verify_message}"
        if "expired" in error.verify_message:
            told += "; the operator renews it (fed-distill sites init FOLDER --renew) and restarts the server"
        raise ConfigError(told) from error
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{address} cannot be reached: {error}; is the server started, and its port open to this machine?"
        ) from error


def installed(place: str, wanted: Mapping[str, str]) -> Finding:
    """Whether the packages here are the server's."""
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
    """Whether all ledgers in ``folder`` are whole and of the site's own ``merchants``; it may leave some out.

    answered: the names, as files have them, of merchants who have answered private requests, and so must have a ledger.
    """

    def look() -> str:
        there = Ledgers(folder).merchants()
        lost = set(answered) - {path.stem for path in Ledgers(folder).files()}
        if lost:
            raise ConfigError(
                f"answers of {min(lost)!r} are kept in {folder}, and its ledger is gone: put it back, for what is not "
                "in it counts as never spent"
            )
        foreign = [merchant for merchant in there if merchant not in merchants]
        if foreign and some_left_out:
            return (
                f"of {foreign[0]!r} too, whom data.merchants leaves out: keep it, if they are a merchant of this site"
            )
        if foreign:
            raise ConfigError(
                f"{folder} has a ledger of {foreign[0]!r}, who is no merchant of this site: it belongs elsewhere"
            )
        return f"{len(there)} of {len(merchants)} merchants have one"

    return checked(place, "ledgers", look)


def limits(
    place: str,
    methods: Collection[str] | None,
    imports: Collection[str],
    named: Collection[str],
    merchants: Collection[str],
) -> Finding:
    """Whether a site's rules name methods, and its limits merchants, that there are: a slip would refuse everything.

    imports: the import paths that requests may name, those of methods too.
    """

    def look() -> str:
        for method in () if methods is None else methods:
            if ":" not in method:
                METHODS.resolve(method)
            elif method not in imports:
                raise ConfigError(f"[limits.rules] allows method {method!r}, and its imports do not name it: add it")
        unknown = [name for name in named if name not in merchants]
        if unknown:
            raise ConfigError(f"[limits.merchants] names {unknown[0]!r}, who is no merchant of this site")
        allowed = "all methods" if methods is None else counted(len(methods), "method")
        return f"{allowed} allowed, {counted(len(named), 'merchant')} with limits of their own"

    return checked(place, "limits", look)


def counted(number: int, what: str) -> str:
    """So many of something, in words: ``no problems``, ``1 problem``."""
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
