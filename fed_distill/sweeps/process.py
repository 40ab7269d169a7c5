"""Run one cell in its own process; output goes to a log file, progress and failure to the sweep through a pipe.

A cell that runs out of memory or is killed does not affect others. A cell ends when the sweep does, and the same
command resumes both. Cells are forked from a process that has imported ``IMPORTED`` and done nothing else, as imports
take seconds.
"""

import json
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fed_distill.config import Experiment
from fed_distill.errors import FedDistillError
from fed_distill.registry import Registry
from fed_distill.reporting.callbacks import Callback

Simulate = Callable[[Experiment, Iterable[Callback]], Any]
"""Runs an experiment in its folder with callbacks: ``experiment.simulation.run``."""
Attack = Callable[[Path, Callback, int, int], Any]
"""Attacks the run in a folder with numbers of shadow students and canaries: ``audit.finished_run.audit_run``."""
FUNCTIONS = Registry("function for cells", {})
FAILED = 1
IMPORTED = ("fed_distill.experiment.run", "fed_distill.merchant.app", "fed_distill.reporting.result")
"""Modules that cells need; they import torch."""


class Reporter(Callback):
    """Sends each stage and round of a run through a pipe, as JSON."""

    def __init__(self, pipe: "connection.Connection[bytes, bytes]") -> None:
        self._pipe = pipe

    def send(self, **event: Any) -> None:
        """Send one event; it is dropped if the sweep has ended, because this process then ends too."""
        with suppress(OSError):
            self._pipe.send_bytes(json.dumps(event).encode())

    def on_stage(self, title: str, total: int | None) -> None:
        """Send the stage's title."""
        self.send(stage=title)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Send the number of the finished round, its seed and its validation, if any."""
        self.send(
            round=f"round {record['round']} of {record['rounds']}",
            number=record["round"],
            seed=record.get("seed"),
            valid=record.get("valid"),
        )


@dataclass(frozen=True)
class Work:
    """The work of a cell. experiment: TOML, with its folder. threads: of the process. simulate, attack: import paths
    ``package.module:function`` of a ``Simulate`` and an ``Attack``; None if it is done or not requested.
    """

    experiment: str
    threads: int
    simulate: str | None
    attack: str | None = None
    shadows: int = 0
    canaries: int = 0


@dataclass
class CellProcess:
    """The sweep's handle of a process that runs a cell.

    failure: its reported reason of failure; error: the type of that error.
    """

    process: BaseProcess
    pipe: "connection.Connection[bytes, bytes]"
    failure: str | None = None
    error: str = ""
    open: bool = True

    @classmethod
    def start(cls, work: Work, log: Path, name: str) -> "CellProcess":
        """Start a process called ``name`` with output to ``log``."""
        server = get_context("forkserver")
        server.set_forkserver_preload(list(IMPORTED))
        ours, theirs = server.Pipe(duplex=False)
        environment = {**os.environ, "OMP_NUM_THREADS": str(work.threads)}
        process = server.Process(target=run_cell, args=(work, str(log), theirs, environment), name=name)
        with _environment(environment):  # the first start begins the process that imports numerical libraries
            process.start()
        theirs.close()
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Process id; 0 before it has one."""
        return self.process.pid or 0

    @property
    def sentinel(self) -> int:
        """Handle that becomes ready when the process ends."""
        return self.process.sentinel

    @property
    def sources(self) -> list["connection.Connection[bytes, bytes] | int"]:
        """Handles that become ready when an event arrives or the process ends."""
        return [self.sentinel, *([self.pipe] if self.open else [])]

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events since the last call."""
        while self.open and self.pipe.poll():
            try:
                event: dict[str, Any] = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):  # the process ended, possibly during a message
                self.open = False
                return
            self.failure, self.error = event.get("failed", self.failure), event.get("error", self.error)
            yield event

    def leave(self) -> int | None:
        """Wait for the end of the process and return its exit code."""
        self.process.join()
        self.pipe.close()
        self.open = False
        return self.process.exitcode

    def end(self) -> None:
        """Kill the process; call ``leave`` afterwards."""
        self.process.terminate()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These and no other environment variables."""
    before = dict(os.environ)
    _replace_environment(variables)
    try:
        yield
    finally:
        _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def run_cell(work: Work, log: str, pipe: "connection.Connection[bytes, bytes]", environment: Mapping[str, str]) -> None:
    """Run a cell in this process and exit: code 0 on success, otherwise ``FAILED`` after an event with the reason.

    :param work: what to run
    :param log: file that all output is appended to, including the traceback of an unexpected error
    :param pipe: receives events
    :param environment: this process's environment variables from now on
    """
    _replace_environment(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are handled by the sweep
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(Path(log))
    reporter = Reporter(pipe)
    try:
        _do(work, reporter)
    except FedDistillError as error:
        kind, reason = type(error).__name__, str(error)
    except OSError as error:
        traceback.print_exc()
        kind = type(error).__name__
        reason = f"cannot use {error.filename}: {error.strerror}" if error.filename is not None else str(error)
    except Exception as error:
        traceback.print_exc()
        kind = type(error).__name__
        reason = f"{kind}: {error}; its traceback is in {log}"
    else:
        return
    reporter.send(failed=" ".join(reason.split()), error=kind)
    sys.exit(FAILED)


def _do(work: Work, reporter: Reporter) -> None:
    experiment = Experiment.parse(tomllib.loads(work.experiment))
    if work.simulate is not None:
        run: Simulate = FUNCTIONS.resolve(work.simulate)
        run(experiment, [reporter])
    if work.attack is not None:
        attack: Attack = FUNCTIONS.resolve(work.attack)
        attack(experiment.runtime.folder / experiment.name, reporter, work.shadows, work.canaries)


def _print_to(log: Path) -> None:
    """Redirect standard output and error of this process and its children to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    """Terminate this process as soon as its parent ends, even during training."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(FAILED)
