"""Registration and presence of sites at the server, through Flower's control API, which has no authentication.

It must therefore be reachable from the server's machine only: ``door`` checks this.
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
"""HTTP status codes of a server that denies access."""

_Request = ListNodesRequest | RegisterNodeRequest | UnregisterNodeRequest
_Answer = TypeVar("_Answer", ListNodesResponse, RegisterNodeResponse, UnregisterNodeResponse)


class Closed(ConfigError):
    """The server denies this machine access."""


class NoAnswer(ConfigError):
    """The server does not answer."""


@dataclass(frozen=True)
class Node:
    """The server's record of a key: its number, and ``registered`` (not connected yet), ``online``, ``offline`` or
    ``unregistered``, which is permanent."""

    number: int
    status: str


def nodes(address: str, authority: Path, seconds: float = 5.0) -> dict[bytes, Node]:
    """Return the record of each site, by its public key in PEM.

    Connects directly, without a proxy.

    :param address: HOST:PORT of the control API
    :param authority: certificate of the authority
    :param seconds: timeout
    :raises Closed: the server denies access
    :raises NoAnswer: the server does not answer
    :raises ConfigError: the answer is invalid
    """
    told = _ask(address, authority, "list-nodes", ListNodesRequest(), ListNodesResponse, seconds)
    return {node.public_key: Node(node.node_id, node.status) for node in told.nodes_info}


def register(address: str, authority: Path, key: SiteKey) -> None:
    """Register a site at the server; raise ConfigError if that fails."""
    request = RegisterNodeRequest(public_key=key.pem, name=key.name)
    _ask(address, authority, "register-node", request, RegisterNodeResponse)


def unregister(address: str, authority: Path, node: Node) -> None:
    """Unregister a site at the server, which disconnects it; raise ConfigError if that fails."""
    request = UnregisterNodeRequest(node_id=node.number)
    _ask(address, authority, "unregister-node", request, UnregisterNodeResponse)


def _ask(
    address: str, authority: Path, call: str, request: _Request, answered: type[_Answer], seconds: float = 5.0
) -> _Answer:
    query = Request(
        f"https://{address}/v1/control/{call}",
        data=request.SerializeToString(),
        headers={"Content-Type": "application/protobuf", "Accept": "application/protobuf"},
        method="POST",
    )
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(query, timeout=seconds) as answer:
            told: _Answer = answered.FromString(answer.read())
            return told
    except HTTPError as error:
        kind = Closed if error.code in _CLOSED else ConfigError
        raise kind(f"{address} does not answer {call}: {error}") from error
    except (HTTPException, DecodeError) as error:
        raise ConfigError(f"{address} does not answer {call} like Flower's server: {error}") from error
    except OSError as error:
        raise NoAnswer(f"{address} does not answer {call}: {error}; start the server first") from error


def door(place: str, address: str, authority: Path, remedy: str, published: bool = True) -> Finding:
    """Check whether Flower's control API is reachable at HOST:PORT, an address for other machines.

    :param remedy: what to do if it is
    :param published: whether another service is expected at this address
    """
    if address.rpartition(":")[0].strip("[]") in LOCAL:
        told = "on this machine only, where any user can start runs"
        return Finding(place, "door", "ok", told)
    try:
        nodes(address, authority)
    except Closed:
        return Finding(place, "door", "ok", f"{address} denies access to the control API")
    except NoAnswer as error:
        if not published:
            return Finding(place, "door", "ok", f"{address} is the server's own, and is not reachable")
        return Finding(place, "door", "warning", f"the control API could not be checked: {error}")
    except ConfigError as error:
        return Finding(place, "door", "warning", f"the control API could not be checked: {error}")
    told = f"anyone who reaches {address} can admit sites and start runs: {remedy}"
    return Finding(place, "door", "problem", told)


def presences(address: str, authority: Path, keys: Path) -> Iterator[Finding]:
    """Check registration and presence of each site with a public key in the folder ``keys``, and report registered keys
    that are not in the folder."""
    try:
        known = nodes(address, authority)
    except ConfigError as error:
        yield Finding("server", "sites", "warning", f"registered sites are unknown: {error}")
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
            told = "its key was revoked but is registered at the server: run server/register.sh"
        else:
            told = (
                "its key is not in server/keys but is registered: unless you know it, `FLWR_HOME=server/flwr "
                f"flwr supernode unregister {node.number} prod`"
            )
        yield Finding("server", f"node {node.number}", "problem", told)


def _presence(name: str, node: Node | None) -> Finding:
    what = f"site {name}"
    if node is None:
        return Finding("server", what, "problem", "not registered, so the server rejects it: run server/register.sh")
    if node.status == UNREGISTERED:
        return Finding("server", what, "problem", "its key was unregistered permanently: create a new one at the site")
    if node.status != "online":
        told = "registered, never connected" if node.status == "registered" else "registered, not connected"
        return Finding("server", what, "warning", f"{told}: start it at the site")
    return Finding("server", what, "ok", node.status)
