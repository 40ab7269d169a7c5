"""What every request passes before its route: who asks, how often, how large, how slowly; and what is told of it.

A key is checked before the body is read. The body is read here, up to its limit, however it is sent, and handed on
whole. What a request said is never logged: a line has method, route, status, duration, the key's name and the
request's id (``request_ids``).
"""

import asyncio
import codecs
import json
import logging
import time
import traceback
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fed_distill.serving import service_config
from fed_distill.serving.api_keys import ApiKey, KeyRing
from fed_distill.serving.api_models import MOST_DETAIL, ErrorCode
from fed_distill.serving.request_ids import REQUEST_ID_HEADER, request_id
from fed_distill.serving.service_config import LimitsTable
from fed_distill.serving.service_metrics import ServiceMetrics

ACCESS = logging.getLogger("fed_distill.serving.access")
_log = logging.getLogger(__name__)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NOT_UTF_8 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
OTHER = "other"
"""Label of routes that do not exist, and of methods that are not HTTP's, which anybody could invent."""

Rules = Mapping[str, service_config.Scope | None]
"""Scope of each route by its path; None: no key is asked for."""


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, error: ErrorCode, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """error: code for programs. detail: one line for people, without anything of the request's texts."""
        super().__init__(detail)
        self.status, self.error, self.detail, self.headers = status, error, detail, dict(headers or {})

    def body(self, request_id: str) -> bytes:
        """Return the answer's content."""
        detail = " ".join(self.detail.split())[:MOST_DETAIL]
        return json.dumps({"error": self.error, "detail": detail, "request_id": request_id}).encode()


class _Gone(Exception):
    """The client has closed the connection."""


@dataclass
class _Exchange:
    """One request. started: whether the answer has begun."""

    scope: Scope
    route: str
    id: str
    key: ApiKey | None = None
    status: int = 0
    started: bool = False


class Gate:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        rules: Rules,
        keys: KeyRing,
        limits: LimitsTable,
        metrics: ServiceMetrics,
        local_only: bool,
        access_log: bool,
    ) -> None:
        """local_only: no key is asked for, because only this machine's programs reach the service; a web page in a
        browser of this machine must not, under a name of its own (DNS rebinding)."""
        self._app, self._rules, self._keys, self._limits = app, rules, keys, limits
        self._metrics, self._local_only, self._access_log = metrics, local_only, access_log
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        route = scope["path"] if scope["path"] in self._rules else OTHER
        exchange = _Exchange(scope, route, request_id(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = exchange.id
        named = (REQUEST_ID_HEADER.lower().encode(), exchange.id.encode())

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.started = message["status"], True
                message["headers"] = [*message["headers"], named]
                if scope["app"].state.draining:  # so that a client which keeps its connection opens the next elsewhere
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            await self._answer(exchange, receive, observed)
        except _Gone:
            exchange.status = 499  # nobody receives it: nginx's number for a client that has gone
        except Refused as refused:
            await _send(refused, exchange.id, observed)
        except Exception as error:
            # The message and values may quote a request; the kind and the lines of code do not.
            lines = "".join(traceback.format_tb(error.__traceback__))
            _log.error("unforeseen %s in request %s\n%s", type(error).__name__, exchange.id, lines)
            if exchange.started:
                raise ConnectionError("the answer broke off") from None
            unforeseen = Refused(500, "internal", "an unforeseen error; the log has its place")
            await _send(unforeseen, exchange.id, observed)
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            self._tell(exchange, time.perf_counter() - started)

    async def _answer(self, exchange: _Exchange, receive: Receive, send: Send) -> None:
        if self._in_flight > self._limits.in_flight and exchange.route != "/health":
            raise Refused(503, "overloaded", "too many requests at once: try again", {"Retry-After": "1"})
        headers = exchange.scope["headers"]
        self._admit(exchange, headers)
        body = await self._read(headers, receive)
        if body.startswith(_NOT_UTF_8) or 0 in body[:4]:  # Python would read it all the same, and proxies would not
            raise Refused(422, "invalid", "the body must be JSON in UTF-8 (RFC 8259, section 8.1)")
        told = False

        async def whole() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(exchange.scope, whole, send)

    def _admit(self, exchange: _Exchange, headers: list[tuple[bytes, bytes]]) -> None:
        if self._local_only:
            hosts = [value for name, value in headers if name == b"host"]
            if len(hosts) != 1 or _host_name(hosts[0]) not in _LOCAL_HOSTS:
                raise Refused(403, "forbidden", "a service without keys is for this machine: ask it as localhost")
        scope = self._rules.get(exchange.route)
        if scope is None or not self._keys.required:
            return
        presented = [value for name, value in headers if name == b"authorization"]
        kind, _, key = presented[0].partition(b" ") if len(presented) == 1 else (b"", b"", b"")
        found = self._keys.find(key.strip()) if kind.lower() == b"bearer" else None
        if found is None:
            raise Refused(
                401,
                "unauthorized",
                "a valid key is required: send the header Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        exchange.key = found
        if not found.allows(scope):
            raise Refused(403, "forbidden", f"this key has no scope {scope}")
        wait = found.wait(time.monotonic())
        if wait:
            raise Refused(
                429, "rate_limited", "this key has used its rate: try again later", {"Retry-After": str(int(wait) + 1)}
            )

    async def _read(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        most = self._limits.body_bytes
        too_large = Refused(413, "too_large", f"a body has at most {most:,} bytes: send fewer or shorter texts")
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or len(value) > 18 or int(value) > most):
                raise too_large
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refused(
                408, "timeout", "the body did not arrive in time: send it at once", {"Connection": "close"}
            ) from None
        return b"".join(parts)

    def _tell(self, exchange: _Exchange, seconds: float) -> None:
        self._metrics.request(exchange.route, exchange.status, seconds)
        if self._access_log:
            method = exchange.scope["method"]
            ACCESS.info(
                "%s %s %d %.1f ms key=%s id=%s",
                method if method in _METHODS else OTHER,
                exchange.route,
                exchange.status,
                1000 * seconds,
                exchange.key.name if exchange.key else "-",
                exchange.id,
            )


def _host_name(host: bytes) -> str:
    """Return the name in a Host header, without the port."""
    name = host.decode("latin-1").lower()
    return name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]


async def _send(refused: Refused, request_id: str, send: Send) -> None:
    body = refused.body(request_id)
    headers: MutableMapping[str, Any] = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **refused.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
