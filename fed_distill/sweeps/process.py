"""One cell in a process of its own: what it prints goes to a log, what it is doing and why it failed to the study.

A cell that runs out of memory, or that the system kills, takes no other with it; the cell itself ends as soon as the
study does, in whatever way, so that the same command can go on with it.
"""

import json
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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
"""Runs one experiment into the folder that it names, telling the callbacks: ``experiment.simulation.run``."""
Attack = Callable[[Path, Callback, int, int], Any]
"""Attacks the run in a folder with so many shadow students and canaries: ``audit.finished_run.audit_run``."""
FUNCTIONS = Registry("function for cells", {})
FAILED = 1


class Reporter(Callback):
    """Sends each stage and round of a run through a pipe, as JSON."""

    def __init__(self, pipe: "connection.Connection[bytes, bytes]") -> None:
        self._pipe = pipe

    def send(self, **event: Any) -> None:
        """Send one event; a study that is gone hears nothing, and this process is about to end with it."""
        with suppress(OSError):
            self._pipe.send_bytes(json.dumps(event).encode())

    def on_stage(self, title: str, total: int | None) -> None:
        """Send the stage's title."""
        self.send(stage=title)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Send which round of which seed has ended, and its validation where there was one."""
        self.send(
            round=f"round {record['round']} of {record['rounds']}",
            number=record["round"],
            seed=record.get("seed"),
            valid=record.get("valid"),
        )


@dataclass(frozen=True)
class Work:
    """What there is to do for a cell. experiment: as TOML, with its place. simulate, attack: import paths
    ``package.module:function`` of a ``Simulate`` and an ``Attack``; None for what is done already, or not wanted.
    """

    experiment: str
    simulate: str | None
    attack: str | None = None
    shadows: int = 0
    canaries: int = 0


@dataclass
class CellProcess:
    """A process that does a cell's work, as those see it that started it.

    failure: why it failed, as soon as it has said so; error: the kind of that error.
    """

    process: BaseProcess
    pipe: "connection.Connection[bytes, bytes]"
    failure: str | None = None
    error: str = ""
    open: bool = True

    @classmethod
    def start(cls, work: Work, log: Path, name: str) -> "CellProcess":
        """Start a process called ``name`` that prints to ``log``."""
        spawn = get_context("spawn")
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=run_cell, args=(work, str(log), theirs), name=name)
        process.start()
        theirs.close()
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """Of the process; 0 while it has none."""
        return self.process.pid or 0

    @property
    def sentinel(self) -> int:
        """What becomes ready when it has ended."""
        return self.process.sentinel

    @property
    def sources(self) -> list["connection.Connection[bytes, bytes] | int"]:
        """What becomes ready when it has something to say, or has ended."""
        return [self.sentinel, *([self.pipe] if self.open else [])]

    def events(self) -> Iterator[dict[str, Any]]:
        """What it has said since the last call."""
        while self.open and self.pipe.poll():
            try:
                event: dict[str, Any] = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):  # it has ended, perhaps in the middle of a message
                self.open = False
                return
            self.failure, self.error = event.get("failed", self.failure), event.get("error", self.error)
            yield event

    def leave(self) -> int | None:
        """Wait for its end; returns its exit code."""
        self.process.join()
        self.pipe.close()
        self.open = False
        return self.process.exitcode

    def end(self) -> None:
        """End it at once, wherever it is; ``leave`` it then."""
        self.process.terminate()


def run_cell(work: Work, log: str, pipe: "connection.Connection[bytes, bytes]") -> None:
    """Do a cell's work here and exit: code 0 if it ended well, else ``FAILED``, after an event that says why.

    log: file that everything printed is appended to, the traceback of an unexpected error included.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the study's to answer
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
    if experiment.runtime.threads is not None:  # read by torch when it is imported, which is not yet
        os.environ["OMP_NUM_THREADS"] = str(experiment.runtime.threads)
    if work.simulate is not None:
        run: Simulate = FUNCTIONS.resolve(work.simulate)
        run(experiment, [reporter])
    if work.attack is not None:
        attack: Attack = FUNCTIONS.resolve(work.attack)
        attack(experiment.runtime.folder / experiment.name, reporter, work.shadows, work.canaries)


def _print_to(log: Path) -> None:
    """Let standard output and standard error of this process, and of those that it starts, append to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _end_with_parent() -> None:
    """End this process as soon as the study's has ended, also in the middle of training."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(FAILED)
