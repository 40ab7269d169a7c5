"""uvicorn's server with a drain: after SIGTERM the service says that it is not ready, and goes on for some seconds.

A balancer that asks ``/ready`` takes the service out in this time, so that no request meets a closed port. Answers
close their connections meanwhile, so that clients which keep theirs open the next one elsewhere.
"""

import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from fed_distill.serving.http_protocol import bounded_protocol
from fed_distill.serving.service_config import ServeConfig

_SWITCH_SECONDS = 0.0005
"""After which a thread gives way to another: with Python's 5 ms, the thread that scores delays the one that answers."""


class DrainingServer(uvicorn.Server):
    """Serves an application of ``build_service``. SIGTERM drains it; SIGINT, or a second SIGTERM, does not wait."""

    def __init__(self, app: FastAPI, config: ServeConfig, started: Callable[[], None]) -> None:
        """started: called when requests are accepted."""
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(config.limits.body_seconds),
                ws="none",
                access_log=False,  # its lines have query strings
                log_config=None,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.limits.connections,
                timeout_graceful_shutdown=config.limits.stop_seconds,
            )
        )
        self._app, self._seconds, self._when_started = app, config.service.drain_seconds, started
        self._until: float | None = None
        sys.setswitchinterval(_SWITCH_SECONDS)

    def drain(self) -> None:
        """Begin to drain; again: stop now. Requests in progress are answered in either case."""
        if self._until is None:
            self.begin_drain()
        else:
            self.should_exit = True

    def begin_drain(self) -> None:
        """Begin to drain; nothing if it has begun."""
        if self._until is None:
            self._app.state.draining = True
            self._until = time.monotonic() + self._seconds
            self.should_exit = not self._seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT, in uvicorn's place."""
        if sig == signal.SIGTERM:
            self.drain()
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell so."""
        await super().startup(sockets)
        if self.started:
            self._when_started()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn asks ten times a second."""
        if self._until is not None and time.monotonic() >= self._until:
            self.should_exit = True
        return await super().on_tick(counter)
