"""A worker of the service, in a process of its own. ``supervisor`` starts it; nobody else does.

It accepts connections from the socket that all workers share, and obeys the supervisor through a channel. When the
channel closes, the supervisor is gone, and the worker stops as for SIGTERM.

Signals often reach all processes of a service at once: those of a terminal, and systemd's at a stop. The supervisor
then acts on them, so that here SIGINT and SIGHUP do nothing, and SIGTERM does not count as the supervisor's first word.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from starlette.datastructures import State

from fed_distill.errors import FedDistillError
from fed_distill.serving.draining import DrainingServer
from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import ServeConfig
from fed_distill.serving.service_logs import log_service
from fed_distill.serving.students import Students

READY, ALIVE, RELOAD, LOOK, DRAIN = b"+", b".", b"r", b"l", b"d"
"""What the channel carries, a byte each. To the supervisor: requests are accepted; the event loop runs; all other
workers should reload; or look at their files, as the index has changed. To the worker: reload; look; drain, or, the
second time, stop now."""
BEAT_SECONDS = 1.0
"""Between two signs of life."""


def main() -> None:
    """Serve until told to stop."""
    for left_to_supervisor in (signal.SIGINT, signal.SIGHUP):
        signal.signal(left_to_supervisor, signal.SIG_IGN)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="ServeConfig of the service, JSON")
    parser.add_argument("--listener", type=int, required=True, help="file number of the socket that listens")
    parser.add_argument("--channel", type=int, required=True, help="file number of the supervisor's channel")
    parser.add_argument("--rates", type=Path, required=True, help="folder of the keys' token buckets")
    parser.add_argument("--replaces", action="store_true", help="this worker starts after others have served")
    parser.add_argument("--logs", choices=("text", "json"), required=True)
    parser.add_argument("--folder", type=Path, help="folder of serve.toml, if there is one")
    chosen = parser.parse_args()
    log_service(chosen.logs)
    try:
        config = ServeConfig.model_validate_json(chosen.settings.read_text(encoding="utf-8"))
        app = build_service(config, chosen.folder, chosen.rates, chosen.replaces)
        students: Students = app.state.students
        students.load()
    except FedDistillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    channel = socket.socket(fileno=chosen.channel)
    server = _Server(app, config, lambda: channel.sendall(READY))
    _connect(app.state, channel)
    with (
        socket.socket(fileno=chosen.listener) as listener,
        channel,
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        runner.run(_served(server, listener, channel, students))


class _Server(DrainingServer):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT, in uvicorn's place."""
        if sig == signal.SIGTERM:
            self.begin_drain()


async def _served(server: DrainingServer, listener: socket.socket, channel: socket.socket, students: Students) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # which uvicorn raises again when it has ended
    tasks = (asyncio.create_task(_obey(server, channel, students)), asyncio.create_task(_live(server, channel)))
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()


async def _obey(server: DrainingServer, channel: socket.socket, students: Students) -> None:
    """Do what the supervisor says."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    drain = server.begin_drain
    while told := await loop.sock_recv(channel, 1):
        if told == RELOAD:
            await students.reload(force=True)
        elif told == LOOK:
            await students.reload()
        elif told == DRAIN:
            drain()
            drain = server.drain
    server.begin_drain()


def _connect(state: State, channel: socket.socket) -> None:
    """Let requests to this worker reach the other ones."""
    state.reload_others = lambda: _tell(channel, RELOAD)
    state.index_changed = lambda: _tell(channel, LOOK)


def _tell(channel: socket.socket, what: bytes) -> None:
    """Tell the supervisor, if it is not gone or paused for minutes: workers look at their files without it too."""
    with contextlib.suppress(ConnectionError, BlockingIOError):
        channel.send(what)


async def _live(server: DrainingServer, channel: socket.socket) -> None:
    """Give signs of life, and count for ``/metrics`` of all workers what waits in this one."""
    state = server.config.app.state  # type: ignore[union-attr] # the application of build_service
    while True:
        state.metrics.waiting.set(state.students.waiting)
        _tell(channel, ALIVE)
        await asyncio.sleep(BEAT_SECONDS)


if __name__ == "__main__":
    main()
