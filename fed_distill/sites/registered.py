"""Which sites the server lets in, and which of them are there now: what ``flwr supernode list`` says, by their keys."""

import ssl
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from google.protobuf.message import DecodeError

from fed_distill.errors import ConfigError
from fed_distill.sites.checks import Finding, checked

LOCAL = ("localhost", "127.0.0.1", "[::1]")
_CLOSED = (401, 403, 404, 405)
"""What HTTP answers where there is a server, and nothing for who asks."""


class Closed(ConfigError):
    """The server has answered that it does not let this machine ask."""


def statuses(address: str, authority: Path, seconds: float = 5.0) -> dict[bytes, str]:
    """What the server at HOST:PORT says of each site, ``registered`` (never there yet), ``online`` or ``offline``, by
    the site's public key in PEM.

    Asks directly, through no proxy of this machine's. Closed, or another ConfigError, if it does not tell.
    """
    asked = Request(
        f"https://{address}/v1/control/list-nodes",
        data=ListNodesRequest().SerializeToString(),
        headers={"Content-Type": "application/protobuf", "Accept": "application/protobuf"},
        method="POST",
    )
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(asked, timeout=seconds) as answer:
            told = ListNodesResponse.FromString(answer.read())
    except HTTPError as error:
        kind = Closed if error.code in _CLOSED else ConfigError
        raise kind(f"{address} does not tell which sites it knows: {error}") from error
    except (OSError, HTTPException, DecodeError) as error:
        raise ConfigError(f"{address} does not tell which sites it knows: {error}") from error
    return {node.public_key: node.status for node in told.nodes_info if node.status != "unregistered"}


def door(place: str, address: str, authority: Path) -> Finding:
    """Whether Flower's control API is open to a site, which asks for no password."""
    try:
        statuses(address, authority)
    except Closed:
        return Finding(place, "door", "ok", f"{address} lets nobody here start runs")
    except ConfigError as error:
        return Finding(place, "door", "warning", f"whether it is closed cannot be seen: {error}")
    told = f"whoever reaches {address} can start runs there, which run code here: have the operator close the door"
    return Finding(place, "door", "warning", told)


def presences(address: str, authority: Path, keys: Path) -> Iterator[Finding]:
    """Of each site whose public key is in the folder ``keys``: whether it is registered at the server, and there."""
    try:
        known = statuses(address, authority)
    except ConfigError as error:
        yield Finding("server", "sites", "warning", str(error))
        return
    for public in sorted(keys.glob("*.pub")):
        yield _presence(public, known)


def _presence(public: Path, known: Mapping[bytes, str]) -> Finding:
    what = f"site {public.stem}"

    def look() -> str:
        try:
            key = serialization.load_ssh_public_key(public.read_bytes())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{public} is not a public key in OpenSSH's format: {error}") from error
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        if pem not in known:
            raise ConfigError("not registered, so that it is not let in: run server/register.sh")
        return known[pem]

    found = checked("server", what, look)
    if found.state == "ok" and found.detail != "online":
        told = "registered, and never there yet" if found.detail == "registered" else "registered, and not there now"
        return Finding("server", what, "warning", f"{told}: its people start it")
    return found
