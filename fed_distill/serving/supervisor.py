"""Keep several workers of the service running on one socket.

All workers accept from one listening socket, which this process holds open too: a connection that no worker has
accepted yet is answered by another when one is killed. With a socket each (SO_REUSEPORT) it would be reset, or wait for
the worker's successor. What a killed worker had accepted breaks, as with every server.

uvicorn's own supervisor restarts workers without end and on SIGHUP, which here reloads students and keys.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fed_distill.errors import ConfigError, ServiceError
from fed_distill.serving.service_config import ServeConfig
from fed_distill.serving.service_logs import LogStyle
from fed_distill.serving.service_metrics import WORKERS_FOLDER
from fed_distill.serving.shared_folder import SharedFolder
from fed_distill.serving.worker import BEAT_SECONDS, DRAIN, LOOK, READY, RELOAD

MOST_ENDED = 5
"""Workers that may end by themselves within ``WITHIN_SECONDS``; with one more the service ends."""
WITHIN_SECONDS = 60.0
LONGEST_PAUSE = 30.0
"""Seconds until a worker that could not load the student or settings is tried again, while others serve."""
SILENT_SECONDS = 30.0
"""A worker that has not given a sign of life for so long is killed."""
_GRACE_SECONDS = 5.0
"""By which the workers' own time to stop may be exceeded."""
_log = logging.getLogger(__name__)


def supervise(config: ServeConfig, folder: Path | None, listener: socket.socket, logs: LogStyle) -> None:
    """Run ``service.workers`` workers until stopped; each one that ends is replaced.

    :param folder: of ``serve.toml``, if there is one
    :param listener: socket that listens
    :raises ConfigError: there is no folder for temporary files
    :raises ServiceError: a worker cannot start, or workers end again and again
    """
    try:
        shared = SharedFolder(config.model_dump_json())
    except OSError as error:
        raise ConfigError(
            f"service.workers = {config.service.workers} requires a folder for temporary files: {error}; make /tmp "
            "writable or set TMPDIR"
        ) from error
    with contextlib.closing(shared):
        asyncio.run(_Supervisor(config, folder, listener, logs, shared).run())


@dataclass
class _Worker:
    """A worker that runs. ready: whether it accepts requests. silent: whether it was given up."""

    place: int
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    channel: asyncio.StreamWriter
    ready: bool = False
    silent: bool = False

    async def watch(self, told: Callable[[Self, bytes], None]) -> None:
        """Hand on what the worker tells until it ends; kill it when its event loop has stopped."""
        while True:
            try:
                content = await self._read(SILENT_SECONDS if self.ready else None)
            except TimeoutError:
                _log.error("worker %d, process %d, does not respond and is killed", self.place, self.process.pid)
                self.silent = True
                return
            except ConnectionError:  # it ended with something unread that it was told
                return
            if not content:
                return
            for number in content:
                told(self, bytes([number]))

    async def _read(self, seconds: float | None) -> bytes:
        try:
            return await asyncio.wait_for(self.reader.read(64), seconds)
        except TimeoutError:
            # After a pause of the whole machine or container this process may be the first to go on.
            return await asyncio.wait_for(self.reader.read(64), 2 * BEAT_SECONDS)

    def terminate(self) -> None:
        """End a worker that does not serve yet, and so does not hear what it is told."""
        self._signal(signal.SIGTERM)

    async def end(self) -> int:
        """Return the exit code, negative for a signal; a worker that has not ended is killed."""
        self.channel.close()
        try:
            return await asyncio.wait_for(self.process.wait(), 0.0 if self.silent else _GRACE_SECONDS)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # Not by the process object, whose own look whether it has ended takes the exit code from asyncio.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)


class _Supervisor:
    def __init__(
        self, config: ServeConfig, folder: Path | None, listener: socket.socket, logs: LogStyle, shared: SharedFolder
    ) -> None:
        self._config, self._listener, self._shared = config, listener, shared
        self._workers: dict[int, _Worker] = {}
        self._ends: deque[float] = deque()
        self._served = False
        self._answered = False
        self._stopping = asyncio.Event()
        self._problem: ServiceError | None = None
        # -P: no module of the current folder takes the place of one of the package's.
        self._command = [sys.executable, "-P", "-m", "fed_distill.serving.worker", "--settings", str(shared.settings)]
        self._command += ["--rates", str(shared.rates), "--logs", logs, "--listener", str(listener.fileno())]
        self._command += [] if folder is None else ["--folder", str(folder)]

    async def run(self) -> None:
        """Keep the workers running until stopped."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop_now)
        loop.add_signal_handler(signal.SIGHUP, self._tell, RELOAD)
        places = [asyncio.create_task(self._keep(place)) for place in range(1, self._config.service.workers + 1)]
        await self._stopping.wait()
        longest = self._config.service.drain_seconds + self._config.limits.stop_seconds + _GRACE_SECONDS
        _, late = await asyncio.wait(places, timeout=longest)
        for place in late:
            place.cancel()
        for found in await asyncio.gather(*places, return_exceptions=True):
            if isinstance(found, Exception):
                raise found
        if self._problem is not None:
            raise self._problem

    async def _keep(self, place: int) -> None:
        """Run one worker after the other in a place, until the service stops."""
        pause = shortest = min(1.0, LONGEST_PAUSE)
        while not self._stopping.is_set():
            try:
                code, ready = await self._run_one(place)
            except (OSError, ServiceError) as error:  # no memory or no process left for another
                self._fail(f"worker {place} cannot be started: {error}")
                return
            if self._stopping.is_set():
                return
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            if not (ready or self._served):
                self._fail(f"worker {place} ended {how} before it served: its error is above")
                return
            if code > 0 and not ready and any(worker.ready for worker in self._workers.values()):
                # What is in the folders now cannot be loaded; the others go on with what they loaded before.
                _log.error(
                    "worker %d ended %s before it served; it is started again in %.0f seconds", place, how, pause
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = shortest
            _log.error("worker %d ended %s and is started again", place, how)
            now = time.monotonic()
            self._ends.append(now)
            while self._ends[0] < now - WITHIN_SECONDS:
                self._ends.popleft()
            if len(self._ends) > MOST_ENDED:
                self._fail(
                    f"workers ended {len(self._ends)} times within {WITHIN_SECONDS:.0f} seconds, the last one {how}: "
                    "the service stops; the log above has their errors, and the kernel's log whether memory ran out"
                )

    async def _run_one(self, place: int) -> tuple[int, bool]:
        """Run a worker until it ends; return its exit code, negative for a signal, and whether it served."""
        worker = await self._start(place)
        pid = worker.process.pid
        self._workers[pid] = worker
        if self._stopping.is_set():
            worker.terminate()
        try:
            await worker.watch(self._hear)
        finally:
            del self._workers[pid]
            code = await worker.end()
            # Gauges of the dead leave the sums; its counters stay in them.
            importlib.import_module("prometheus_client.multiprocess").mark_process_dead(pid, str(self._shared.metrics))
        return code, worker.ready

    async def _start(self, place: int) -> _Worker:
        self._shared.complete()
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *(["--replaces"] if self._answered else []),
                "--channel",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(self._listener.fileno(), theirs.fileno()),
                env={
                    **os.environ,
                    WORKERS_FOLDER: str(self._shared.metrics),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                },
            )
        _log.info("worker %d is process %d", place, process.pid)
        return _Worker(place, process, *await asyncio.open_unix_connection(sock=ours))

    def _hear(self, worker: _Worker, told: bytes) -> None:
        if told in (RELOAD, LOOK):
            self._tell(told, but=worker)
        elif told == READY:
            worker.ready = self._answered = True
            workers = self._config.service.workers
            if not self._served and sum(one.ready for one in self._workers.values()) == workers:
                self._served = True
                host, port = self._listener.getsockname()[:2]
                _log.info("serving on http://%s:%d with %d workers", host, port, workers)

    def _tell(self, what: bytes, but: _Worker | None = None) -> None:
        for worker in self._workers.values():
            if worker is not but:
                worker.channel.write(what)

    def _stop(self) -> None:
        """Let all workers drain, or, the second time, stop now."""
        self._stopping.set()
        self._tell(DRAIN)
        for worker in self._workers.values():
            if not worker.ready:
                worker.terminate()

    def _stop_now(self) -> None:
        self._stop()
        self._tell(DRAIN)

    def _fail(self, problem: str) -> None:
        self._problem = self._problem or ServiceError(problem)
        self._stop_now()
