"""A small HTTP/1.1 client for load: a request and its answer at a time on a connection that is kept."""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

import httptools

from fed_distill.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """Where requests go. prefix: path before the routes. context: of TLS; None: plain."""

    host: str
    port: int
    authority: str
    prefix: str
    context: ssl.SSLContext | None
    key: str | None

    @classmethod
    def of(cls, url: str, key: str | None) -> Self:
        """Parse the address of a service; ConfigError if it is none."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"{url!r} is not the URL of a service: write it as http://localhost:8080")
        secure = parts.scheme == "https"
        return cls(
            parts.hostname,
            port or (443 if secure else 80),
            parts.netloc,
            parts.path.rstrip("/"),
            ssl.create_default_context() if secure else None,
            key,
        )

    def request(self, method: str, route: str, body: bytes = b"") -> bytes:
        """Return the bytes of a request."""
        lines = [f"{method} {self.prefix}{route} HTTP/1.1", f"Host: {self.authority}"]
        if self.key is not None:
            lines.append(f"Authorization: Bearer {self.key}")
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One connection. ``usable`` is False when it was closed, or will be."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[int] | None = None
        self._body: list[bytes] = []

    @classmethod
    async def open(cls, target: Target) -> Self:
        """Connect; OSError if that fails."""
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(cls, target.host, target.port, ssl=target.context)
        return made

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return the status and the body of its answer.

        :raises ConnectionError: the connection broke before the answer was complete, or the answer is not HTTP
        """
        assert self._transport is not None
        self._answer, self._body = asyncio.get_running_loop().create_future(), []
        self._transport.write(request)
        return await self._answer, b"".join(self._body)

    def close(self) -> None:
        """Close the connection."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio)."""
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def data_received(self, data: bytes) -> None:
        """Parse (asyncio)."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._broken(ConnectionError("the answer is not HTTP"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio)."""
        self.usable = False
        self._broken(ConnectionResetError("closed before the answer"))

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body (httptools)."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Hand on the answer (httptools)."""
        if self._parser.get_status_code() < 200:
            return  # an interim answer
        self.usable = self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def _broken(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
