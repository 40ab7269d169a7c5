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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from fed_distill.config import Experiment
from fed_distill.errors import FedDistillError
from fed_distill.registry import Registry
from fed_distill.runtime.callbacks import Callback

Simulate = Callable[[Experiment, Iterable[Callback]], Any]
"""Runs one experiment into the folder that it names, telling the callbacks: ``fed_distill.cli.simulation.run``."""
Attack = Callable[[Path, Callback, int, int], Any]
"""Attacks the run in a folder with so many shadow students and canaries: ``fed_distill.cli.audit.audit_run``."""
FUNCTIONS = Registry("function for cells", {})
FAILED = 1


class Reporter(Callback):
    """Sends each stage and round of a run through a pipe, as JSON."""

    def __init__(self, pipe: "connection.Connection[bytes, bytes]") -> None:
        self._pipe = pipe

    def send(self, **event: str) -> None:
        """Send one event; a study that is gone hears nothing, and this process is about to end with it."""
        with suppress(OSError):
            self._pipe.send_bytes(json.dumps(event).encode())

    def on_stage(self, title: str, total: int | None) -> None:
        """Send the stage's title."""
        self.send(stage=title)

    def on_round(self, record: Mapping[str, Any]) -> None:
        """Send which round has ended."""
        self.send(round=f"round {record['round']} of {record['rounds']}")


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
        reason = str(error)
    except OSError as error:
        traceback.print_exc()
        reason = f"cannot use {error.filename}: {error.strerror}" if error.filename is not None else str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}; its traceback is in {log}"
    else:
        return
    reporter.send(failed=" ".join(reason.split()))
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
