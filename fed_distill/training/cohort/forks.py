"""Parallel training of cohorts in forked processes, each on one core.

Threads that share the small kernels of a cohort synchronise often, and threads with separate cohorts compete for the
interpreter lock. Processes avoid both. They are forked for each training: they start within milliseconds, share all
unmodified memory (examples, initial weights, libraries), and receive learners without a copy. Trained weights are
returned in shared memory, everything else as JSON through a pipe.

As with the workers of torch's DataLoader, a lock that another thread holds at the moment of the fork stays locked in
the child. Training takes no such lock; a custom student must not either, such as by logging to a handler with a queue.
"""

import gc
import io
import json
import math
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, current_process, get_context, parent_process, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fed_distill import errors
from fed_distill.models.weights import PartialWeights
from fed_distill.training.cohort.allocator import keep_freed_memory
from fed_distill.training.trainer import Failure, Fitted

Results = list[Fitted | Failure] | None
Work = Callable[[int, Callable[[int], None]], Results]
"""Train cohort number n and report steps to a function; the results, or None if the cohort could not be trained."""

_ALIGNMENT = 64
_BETWEEN_REPORTS = 0.05
"""Seconds between two progress reports of a process."""


def can_fork() -> bool:
    """Whether forked processes can train: on Linux without a GPU, as torch with CUDA does not support gradients in
    forked processes, and not in a daemonic process, which cannot have children."""
    return sys.platform == "linux" and not current_process().daemon and not torch.cuda.is_available()


def side_by_side(work: Work, cohorts: int, processes: int, on_steps: Callable[[int], None]) -> Iterator[Results]:
    """Yield ``work(0)``, ``work(1)``, ... in this order, computed in forked processes of one thread each.

    :param cohorts: how many times to call ``work``.
    :param processes: how many processes to fork at most.
    :param on_steps: receives the steps that ``work`` reports; a negative number takes steps back.
    :raises FedDistillError: what ``work`` raises of this family; TrainingError if a process is killed.
    :raises RuntimeError: if ``work`` raises anything else; its message has the traceback.
    """
    processes, children = min(processes, cohorts), list[_Child]()
    finished: dict[int, Results] = {}
    unassigned = deque(range(cohorts))
    try:
        for _ in range(processes):
            children.append(_Child.of(work, processes))
        for wanted in range(cohorts):
            while wanted not in finished:
                _assign(children, unassigned, before=wanted + 2 * len(children))
                ready = connection.wait([child.pipe for child in children])
                for child in children:
                    if child.pipe in ready:
                        child.receive(finished, on_steps)
            yield finished.pop(wanted)
    finally:
        for child in children:
            child.process.kill()  # its state is only a copy
        for child in children:
            child.process.join()
            child.process.close()
            child.pipe.close()


def _assign(children: Sequence["_Child"], unassigned: deque[int], before: int) -> None:
    """Assign a cohort to every child, and a second one while there are enough for all.

    Numbers from ``before`` on are not assigned, as results that wait for their turn take memory.
    """
    for most in (1, 2):
        for child in children:
            enough = len(unassigned) > (0 if most == 1 else len(children))
            if len(child.assigned) < most and enough and unassigned[0] < before:
                child.assign(unassigned.popleft())


@dataclass
class _Child:
    """A forked process, seen from its parent."""

    process: BaseProcess
    pipe: "connection.Connection[bytes, bytes]"
    assigned: deque[int] = field(default_factory=deque)

    @classmethod
    def of(cls, work: Work, processes: int) -> "_Child":
        """Fork one of ``processes``."""
        fork = get_context("fork")
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_serve, args=(theirs, work, processes), daemon=True)
        try:
            process.start()
        except OSError as error:
            raise errors.TrainingError(
                f"cannot start a training process: {error.strerror}. Decrease runtime.threads"
            ) from error
        theirs.close()
        return cls(process, ours)

    def assign(self, number: int) -> None:
        """Assign cohort ``number`` after the current ones."""
        self.assigned.append(number)
        try:
            self.pipe.send_bytes(json.dumps(number).encode())
        except OSError as error:
            raise self._lost() from error

    def receive(self, finished: dict[int, Results], on_steps: Callable[[int], None]) -> None:
        """Receive one message, with the weights that it announces."""
        try:
            message = json.loads(self.pipe.recv_bytes())
            if message["kind"] == "trained":
                memory = _taken(reduction.recv_handle(self.pipe), message["bytes"])
        except (EOFError, OSError) as error:
            raise self._lost() from error
        match message["kind"]:
            case "steps":
                on_steps(message["steps"])
            case "trained":
                finished[self.assigned.popleft()] = [_read(one, memory) for one in message["results"]]
            case "untrained":
                finished[self.assigned.popleft()] = None
            case "error":
                raise getattr(errors, message["error"], RuntimeError)(message["text"])

    def _lost(self) -> errors.TrainingError:
        self.process.join()
        code = self.process.exitcode or 0
        known = {one.value: one.name for one in signal.Signals}
        how = f"was killed by {known.get(-code, f'signal {-code}')}" if code < 0 else f"ended with exit code {code}"
        return errors.TrainingError(
            f"a training process {how}. If memory ran out, decrease runtime.threads or runtime.cohort; "
            "continue with --resume"
        )


def _serve(pipe: "connection.Connection[bytes, bytes]", work: Work, processes: int) -> None:
    """Run the forked process: train one cohort after another until it is killed, or its parent exits."""
    torch.set_num_threads(1)  # first of all: OpenMP's threads do not survive a fork
    gc.freeze()  # a collection would write to, and so copy, every object that it shares with its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _limit_memory(processes)
    keep_freed_memory()
    reports = _Reports(pipe)
    while True:
        try:
            number = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):  # the parent is gone
            return
        try:
            results = work(number, reports.steps)
            reports.flush()
            _give(pipe, results)
            del results
        except BaseException as error:  # whatever ends this process, its parent has to say so
            family = _family(error)
            with suppress(OSError):
                _send(pipe, kind="error", error=family, text=str(error) if family else traceback.format_exc())
            return


def _family(error: BaseException) -> str:
    """Return the name of the nearest class in ``errors`` that ``error`` is of; empty if there is none."""
    return next((one.__name__ for one in type(error).__mro__ if getattr(errors, one.__name__, None) is one), "")


def _limit_memory(processes: int) -> None:
    """Divide a memory limit (``RLIMIT_DATA``, from a site's rules) among the forked processes.

    The limit is per process, so that all together could otherwise exceed it several times.
    """
    import resource  # not on Windows, where nothing is forked

    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = 1024 * int(status.partition("VmData:")[2].split()[0])
        most = used + max(limit - used, 0) // processes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _give(pipe: "connection.Connection[bytes, bytes]", results: Results) -> None:
    """Send the results of one cohort; their tensors in memory of their own, which the receiver maps."""
    if results is None:
        _send(pipe, kind="untrained")
        return
    descriptor = os.memfd_create("trained weights")
    try:
        with open(descriptor, "wb", closefd=False) as memory:
            written = [_written(one, memory) for one in results]
            size = memory.tell() + memory.write(bytes(1))  # of failures alone there is nothing else to map
        _send(pipe, kind="trained", bytes=size, results=written)
        reduction.send_handle(pipe, descriptor, os.getppid())
    finally:
        os.close(descriptor)


def _written(one: Fitted | Failure, memory: io.BufferedWriter) -> dict[str, Any]:
    """Append the tensors of one result to ``memory``; all else, JSON-ready."""
    if isinstance(one, Failure):
        return {"name": one.name, "reason": one.reason}
    parts = {"arrays": one.weights.arrays, "rows": one.weights.rows, "counts": one.weights.counts}
    places = {part: {name: _place(value, memory) for name, value in values.items()} for part, values in parts.items()}
    return {"name": one.name, "loss": one.loss, "steps": one.steps, **places}


def _place(value: Tensor, memory: io.BufferedWriter) -> tuple[str, list[int], int]:
    """Append one tensor; its type, its shape, and where it begins."""
    memory.write(bytes(-memory.tell() % _ALIGNMENT))
    first = memory.tell()
    memory.write(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return str(value.dtype).removeprefix("torch."), list(value.shape), first


def _taken(descriptor: int, size: int) -> Tensor:
    """Map received memory, uint8 ``[size]``; the system frees it when its last tensor is gone."""
    try:
        return torch.frombuffer(mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE), dtype=torch.uint8)
    finally:
        os.close(descriptor)


def _read(one: Mapping[str, Any], memory: Tensor) -> Fitted | Failure:
    """Inverse of ``_written``; tensors are views of ``memory``."""
    if "reason" in one:
        return Failure(one["name"], one["reason"])
    arrays, rows, counts = (
        {name: _view(memory, *place) for name, place in one[part].items()} for part in ("arrays", "rows", "counts")
    )
    return Fitted(one["name"], PartialWeights(arrays, rows, counts), tuple(one["loss"]), one["steps"])


def _view(memory: Tensor, dtype: str, shape: Sequence[int], first: int) -> Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    return memory[first : first + math.prod(shape) * kind.itemsize].view(kind).view(tuple(shape))


class _Reports:
    """Steps on their way to the parent, a few messages a second."""

    def __init__(self, pipe: "connection.Connection[bytes, bytes]") -> None:
        self._pipe, self._steps, self._last = pipe, 0, time.monotonic()

    def steps(self, count: int) -> None:
        """``count`` merchants took a step."""
        self._steps += count
        if time.monotonic() - self._last > _BETWEEN_REPORTS:
            self.flush()

    def flush(self) -> None:
        """Report what has not been reported."""
        if self._steps:
            _send(self._pipe, kind="steps", steps=self._steps)
        self._steps, self._last = 0, time.monotonic()


def _send(pipe: "connection.Connection[bytes, bytes]", **message: Any) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def _end_with_parent() -> None:
    """End this process as soon as the parent has ended, in whatever way, also in the middle of training."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
