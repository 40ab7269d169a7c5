"""Run the service in this process until it is stopped: SIGTERM or Ctrl-C ends it after the requests in progress, SIGHUP
reloads students and keys."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fed_distill.errors import ConfigError
from fed_distill.serving.http_protocol import bounded_protocol
from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import SERVE, ServeConfig, read_serve_config
from fed_distill.serving.students import Students

_SWITCH_SECONDS = 0.0005
"""After which a thread gives way to another: with Python's 5 ms, the thread that scores delays the one that answers."""
_log = logging.getLogger(__name__)


def run_service(folder: Path, port: int | None = None) -> None:
    """Serve the student of ``folder`` until stopped.

    :param folder: with ``serve.toml``, or an export
    :param port: instead of the file's
    :raises ConfigError: settings are wrong, the address cannot be used, or a package is missing
    :raises ModelError: a student cannot be loaded
    """
    config = read_serve_config(folder)
    if port is not None:
        config = config.model_copy(update={"service": config.service.model_copy(update={"port": port})})
    app = build_service(config, folder if (folder / SERVE).exists() else None)
    students: Students = app.state.students
    students.load()
    with _listening(config) as listener:
        server = uvicorn.Server(
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
        host, used = listener.getsockname()[:2]
        _log.info("serving %s on http://%s:%d", students.versions["student"], host, used)
        sys.setswitchinterval(_SWITCH_SECONDS)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_served(server, listener, students))


async def _served(server: uvicorn.Server, listener: socket.socket, students: Students) -> None:
    reloads: set[asyncio.Task[dict[str, str]]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(students.reload(force=True))
        reloads.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # uvicorn handles them, and raises them again when it has ended: the process then ends as asked, with code 0.
        signal.signal(stop, lambda *_: None)
    await server.serve(sockets=[listener])


@contextlib.contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    """Open the socket first, so that a port in use is one line, and the chosen port is known."""
    service = config.service
    try:
        family, *_, address = socket.getaddrinfo(
            service.host, service.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {service.host}, port {service.port}: {error.strerror}: choose another with service.port"
        ) from error
    with listener:
        yield listener
