"""Which sites the server lets in, and which of them are there now: Flower's control API, which asks for no password.

So it is to be reached from the server's own machine alone: ``door`` tells whether it can be reached from here.
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from google.protobuf.message import DecodeError

from fed_distill.deploy.checks import Finding
from fed_distill.deploy.identity import SiteKey
from fed_distill.errors import ConfigError

LOCAL = ("localhost", "127.0.0.1", "::1")
UNREGISTERED = "unregistered"
_CLOSED = (401, 403, 404, 405)
"""What HTTP answers where there is a server, and nothing for who asks."""

_Request = ListNodesRequest | RegisterNodeRequest | UnregisterNodeRequest
_Answer = TypeVar("_Answer", ListNodesResponse, RegisterNodeResponse, UnregisterNodeResponse)


class Closed(ConfigError):
    """The server has answered that it does not let this machine ask."""


class NoAnswer(ConfigError):
    """Nobody has answered."""


@dataclass(frozen=True)
class Node:
    """What the server knows of a key: its number there, and ``registered`` (never there yet), ``online``, ``offline``
    or ``unregistered``, which is for ever."""

    number: int
    status: str


def nodes(address: str, authority: Path, seconds: float = 5.0) -> dict[bytes, Node]:
    """What the server whose control API is at HOST:PORT says of each site, by the site's public key in PEM.

    Asks directly, through no proxy of this machine's. Closed, NoAnswer or another ConfigError, if it does not tell.
    """
    told = _ask(address, authority, "list-nodes", ListNodesRequest(), ListNodesResponse, seconds)
    return {node.public_key: Node(node.node_id, node.status) for node in told.nodes_info}


def register(address: str, authority: Path, key: SiteKey) -> None:
    """Have the server let a site in from now on; ConfigError if it does not."""
    asked = RegisterNodeRequest(public_key=key.pem, name=key.name)
    _ask(address, authority, "register-node", asked, RegisterNodeResponse)


def unregister(address: str, authority: Path, node: Node) -> None:
    """Have the server let a site in no more, also where it is online; ConfigError if it does not."""
    asked = UnregisterNodeRequest(node_id=node.number)
    _ask(address, authority, "unregister-node", asked, UnregisterNodeResponse)


def _ask(
    address: str, authority: Path, call: str, request: _Request, answered: type[_Answer], seconds: float = 5.0
) -> _Answer:
    asked = Request(
        f"https://{address}/v1/control/{call}",
        data=request.SerializeToString(),
        headers={"Content-Type": "application/protobuf", "Accept": "application/protobuf"},
        method="POST",
    )
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(asked, timeout=seconds) as answer:
            told: _Answer = answered.FromString(answer.read())
            return told
    except HTTPError as error:
        kind = Closed if error.code in _CLOSED else ConfigError
        raise kind(f"{address} does not answer {call}: {error}") from error
    except (HTTPException, DecodeError) as error:
        raise ConfigError(f"{address} does not answer {call} as Flower's server does: {error}") from error
    except OSError as error:
        raise NoAnswer(f"{address} does not answer {call}: {error}; is the server started?") from error


def door(place: str, address: str, authority: Path, remedy: str, published: bool = True) -> Finding:
    """Whether Flower's control API can be reached at HOST:PORT, which others than this machine can reach too.

    remedy: what is to be done then. published: whether somebody should answer there at all.
    """
    if address.rpartition(":")[0].strip("[]") in LOCAL:
        told = "on this machine alone, where whoever has an account can start runs"
        return Finding(place, "door", "ok", told)
    try:
        nodes(address, authority)
    except Closed:
        return Finding(place, "door", "ok", f"{address} lets nobody here start runs")
    except NoAnswer as error:
        if not published:
            return Finding(place, "door", "ok", f"{address} is the server's own, and does not answer there")
        return Finding(place, "door", "warning", f"whether it is closed cannot be seen: {error}")
    except ConfigError as error:
        return Finding(place, "door", "warning", f"whether it is closed cannot be seen: {error}")
    told = f"whoever reaches {address} can let sites in and start runs: {remedy}"
    return Finding(place, "door", "problem", told)


def presences(address: str, authority: Path, keys: Path) -> Iterator[Finding]:
    """Of each site whose public key is in the folder ``keys``: whether it is registered at the server, and there; and
    of each key that is registered and not in the folder."""
    try:
        known = nodes(address, authority)
    except ConfigError as error:
        yield Finding("server", "sites", "warning", f"who is let in is not told: {error}")
        return
    admitted: dict[bytes, str] = {}
    revoked: dict[bytes, str] = {}
    for found, folder in ((admitted, keys), (revoked, keys.parent / "revoked")):
        for path in sorted(folder.glob("*.pub")):
            try:
                found[SiteKey.read(path).pem] = path.stem
            except ConfigError as error:
                yield Finding("server", f"site {path.stem}", "problem", str(error))
    yield from (_presence(name, known.get(key)) for key, name in admitted.items())
    for key, node in known.items():
        if node.status == UNREGISTERED or key in admitted:
            continue
        if key in revoked:
            told = "its key was revoked, and the server lets it in: run server/register.sh"
        else:
            told = (
                "its key is not in server/keys, and the server lets it in: unless you know it, `FLWR_HOME=server/flwr "
                f"flwr supernode unregister {node.number} prod`"
            )
        yield Finding("server", f"node {node.number}", "problem", told)


def _presence(name: str, node: Node | None) -> Finding:
    what = f"site {name}"
    if node is None:
        return Finding("server", what, "problem", "not registered, so that it is not let in: run server/register.sh")
    if node.status == UNREGISTERED:
        return Finding("server", what, "problem", "its key was unregistered there for ever: it needs a new one")
    if node.status != "online":
        told = "registered, and never there yet" if node.status == "registered" else "registered, and not there now"
        return Finding("server", what, "warning", f"{told}: its people start it")
    return Finding("server", what, "ok", node.status)
