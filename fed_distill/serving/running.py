"""Run the service until it is stopped, in this process or, with several workers, under its supervision.

SIGTERM ends it after the drain and the requests in progress, Ctrl-C without the drain; SIGHUP reloads students and
keys.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from fed_distill.errors import ConfigError
from fed_distill.serving.draining import DrainingServer
from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import SERVE, ServeConfig, read_serve_config
from fed_distill.serving.service_logs import LogStyle
from fed_distill.serving.students import Students
from fed_distill.serving.supervisor import supervise

_BACKLOG = 2048
_log = logging.getLogger(__name__)


def run_service(
    folder: Path, port: int | None = None, logs: LogStyle = "text", beside: Mapping[str, Path] | None = None
) -> None:
    """Serve the student of ``folder`` until stopped.

    :param folder: with ``serve.toml``, or an export
    :param port: instead of the file's
    :param logs: form of the workers' log lines
    :param beside: of an export: its ``index`` and ``trained`` run, see ``read_serve_config``
    :raises ConfigError: settings are wrong, the address cannot be used, or a package is missing
    :raises ModelError: a student cannot be loaded
    :raises ServiceError: workers cannot start, or end again and again
    """
    config = read_serve_config(folder, beside)
    if port is not None:
        config = config.model_copy(update={"service": config.service.model_copy(update={"port": port})})
    keys = folder if (folder / SERVE).exists() else None
    if config.service.workers > 1:
        config.check_access()
        with _bound(config) as listener:
            _listen(listener, config)
            supervise(config, keys, listener, logs)
        _log.info("stopped")
        return
    with _bound(config) as listener:
        app = build_service(config, keys)
        students: Students = app.state.students
        students.load()
        _listen(listener, config)
        host, used = listener.getsockname()[:2]
        server = DrainingServer(
            app,
            config,
            lambda: _log.info("serving %s on http://%s:%d", students.versions["student"], host, used),
        )
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_served(server, listener, students))
    _log.info("stopped")


async def _served(server: DrainingServer, listener: socket.socket, students: Students) -> None:
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
def _bound(config: ServeConfig) -> Iterator[socket.socket]:
    """Bind a socket before students are loaded: a port in use is told at once, and until `_listen` connections are
    refused, so that balancers turn to another instance."""
    service = config.service
    try:
        family, *_, address = socket.getaddrinfo(
            service.host, service.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unusable(config, error) from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
        except OSError as error:
            raise _unusable(config, error) from error
        yield listener


def _listen(listener: socket.socket, config: ServeConfig) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another process bound the port too, and listens
        raise _unusable(config, error) from error


def _unusable(config: ServeConfig, error: OSError) -> ConfigError:
    service = config.service
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {service.port} is in use: choose another with --port (service.port in {SERVE})")
    return ConfigError(
        f"cannot listen on {service.host}, port {service.port}: {error.strerror}: choose another with service.host and "
        f"service.port in {SERVE}"
    )
