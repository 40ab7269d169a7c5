"""uvicorn's HTTP protocol with limits before a request exists: size of its headers, and time for them to arrive.

uvicorn's parser ``httptools`` bounds neither, so that one connection could fill the memory or stay open for ever.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEADERS = 1 << 16
"""Bytes of a request before its body."""
_ANSWER = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers are too large, or do not arrive within ``seconds``."""

    seconds = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._read = 0
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to headers."""
        if self._in_headers:
            self._read += len(data)
            if self._read > _MOST_HEADERS + len(data):
                self.transport.write(_ANSWER)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin the headers of a further request on the connection."""
        super().on_message_begin()
        if not self._in_headers:
            self._read = 0
            self._expect()

    def on_headers_complete(self) -> None:
        """End the headers."""
        self._in_headers = False
        self._deadline.cancel()
        super().on_headers_complete()

    def _expect(self) -> None:
        self._in_headers = True
        self._deadline = self.loop.call_later(self.seconds, self._late)

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def bounded_protocol(seconds: float) -> type[Any]:
    """Return the protocol with ``seconds`` for headers."""
    return type("BoundedProtocol", (BoundedProtocol,), {"seconds": seconds})
