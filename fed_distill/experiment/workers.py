"""Worker processes, for students that the CPU limits: a grid whose nodes are served by processes of their own.

Messages cross as Flower's protocol buffers, a record at a time, so that no reply of many merchants is ever serialized
as a whole. torch is imported in the workers only: they start while the rest of the program is still being imported.
"""

import importlib
import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from fed_distill.errors import TrainingError
from fed_distill.experiment.grid import LocalGrid, answer, context_of

REPLIES_AHEAD = 2
"""Replies of one worker that wait to be pulled at most, before it stops to work ahead."""
_END = b""


@dataclass
class _Worker:
    """A worker process, its end of the pipe, and the messages that it has not begun."""

    number: int
    process: BaseProcess
    pipe: "connection.Connection[bytes, bytes]"
    queue: dict[str, Message] = field(default_factory=dict)
    unpulled: int = 0


class WorkerGrid(LocalGrid):
    """A grid of ``nodes`` nodes that are served by ``workers`` processes.

    Node k belongs to worker k modulo ``workers``, which answers one message after another in the order in which they
    were pushed, and works at most ``REPLIES_AHEAD`` replies ahead of what is pulled. The workers end with ``close``,
    and with this process however it ends.
    """

    def __init__(
        self, app: str, run_config: Mapping[str, Any], nodes: int, workers: int, threads: int | None = None
    ) -> None:
        """``app``: import path ``package.module:function`` of what makes the ClientApp, called in each worker.

        ``threads``: torch threads of a worker, by default its share of those that torch would take alone.
        """
        super().__init__(nodes)
        spawn = get_context("spawn")
        self._changed = threading.Condition()
        self._replies: dict[str, Message] = {}
        self._wanted: frozenset[str] = frozenset()
        self._worker_of: dict[str, _Worker] = {}
        self._fault: TrainingError | None = None
        self._closed = False
        self._workers: list[_Worker] = []
        for number in range(workers):
            ours, theirs = spawn.Pipe()
            arguments = (theirs, app, self._nodes[number::workers], nodes, dict(run_config), workers, threads)
            process = spawn.Process(target=_serve, args=arguments, name=f"worker {number + 1}", daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(number, process, ours))
        self._drivers = [
            threading.Thread(target=self._drive, args=(worker,), daemon=True, name=f"driver of {worker.process.name}")
            for worker in self._workers
        ]
        for driver in self._drivers:
            driver.start()

    @property
    def processes(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid or 0 for worker in self._workers]

    def _queue(self, message_id: str, message: Message) -> None:
        with self._changed:
            worker = self._workers[self._nodes.index(message.metadata.dst_node_id) % len(self._workers)]
            self._worker_of[message_id] = worker
            worker.queue[message_id] = message
            self._changed.notify_all()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait for the replies to these messages and take them, each once.

        Raises TrainingError, naming the worker, if one has ended: its merchants' answers would be missing.
        """
        with self._changed:
            wanted = [key for key in message_ids if key in self._worker_of]
            self._wanted = frozenset(wanted)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._fault or all(key in self._replies for key in wanted))
            self._wanted = frozenset()
            if self._fault is not None:
                raise self._fault
            for key in wanted:
                self._worker_of.pop(key).unpulled -= 1
            self._changed.notify_all()
            return [self._replies.pop(key) for key in wanted]

    def close(self) -> None:
        """End the workers at once, also in the middle of their work, and wait until they are gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.process.terminate()
        for worker, driver in zip(self._workers, self._drivers, strict=True):
            worker.process.join()
            driver.join()
            worker.pipe.close()

    def _drive(self, worker: _Worker) -> None:
        """Feed one worker, until the grid is closed or the worker is gone."""
        try:
            while (taken := self._next(worker)) is not None:
                key, message = taken
                _send(worker.pipe, message)
                reply = _receive(worker.pipe)
                with self._changed:
                    self._replies[key] = reply
                    self._changed.notify_all()
        except Exception as error:  # whatever it is, who waits for the reply must hear of it
            with self._changed:
                if not self._closed and self._fault is None:
                    self._fault = self._lost(worker, error)
                self._changed.notify_all()

    def _next(self, worker: _Worker) -> tuple[str, Message] | None:
        """The message whose turn it is, with its id; None when the grid is closed.

        A worker with many replies waiting goes on only if somebody waits for what it has not done yet.
        """

        def ready() -> bool:
            ahead = worker.unpulled < REPLIES_AHEAD or not self._wanted.isdisjoint(worker.queue)
            return self._closed or (bool(worker.queue) and ahead)

        with self._changed:
            self._changed.wait_for(ready)
            if self._closed:
                return None
            worker.unpulled += 1
            key = next(iter(worker.queue))
            return key, worker.queue.pop(key)

    def _lost(self, worker: _Worker, error: Exception) -> TrainingError:
        worker.process.join(timeout=5.0)
        code = worker.process.exitcode
        which = f"worker {worker.number + 1} of {len(self._workers)} (process {worker.process.pid})"
        if code is None:
            return TrainingError(f"{which} could not be reached: {type(error).__name__}: {error}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return TrainingError(
            f"{which} {how} before it answered; what it wrote above may say why. If memory ran out, lower "
            "runtime.workers; go on with --resume"
        )


def _serve(
    pipe: "connection.Connection[bytes, bytes]",
    app: str,
    nodes: Sequence[int],
    parts: int,
    run_config: Mapping[str, Any],
    workers: int,
    threads: int | None,
) -> None:
    """A worker: answer the messages to ``nodes`` until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch  # here, not above: the parent must not wait for it before it starts workers

    torch.set_num_threads(threads or max(1, torch.get_num_threads() // workers))
    module, _, make = app.partition(":")
    client = getattr(importlib.import_module(module), make)()
    contexts = {node: context_of(node, parts, run_config) for node in nodes}
    try:
        while True:
            message = _receive(pipe)
            _send(pipe, answer(client, message, contexts[message.metadata.dst_node_id]))
    except (EOFError, OSError):  # the parent is gone: the app's own errors have become replies
        return


def _end_with_parent() -> None:
    """End this process as soon as the parent has ended, in whatever way, also in the middle of training."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _send(pipe: "connection.Connection[bytes, bytes]", message: Message) -> None:
    """Send the message without its content, then record by record, then an end mark."""
    pipe.send_bytes(message_to_proto(remove_content_from_message(message)).SerializeToString())
    if message.has_content():
        for name, record in message.content.items():
            pipe.send_bytes(recorddict_to_proto(RecordDict({name: record})).SerializeToString())
    pipe.send_bytes(_END)


def _receive(pipe: "connection.Connection[bytes, bytes]") -> Message:
    """Inverse of ``_send``; EOFError when the other side is gone."""
    message = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
    while (part := pipe.recv_bytes()) != _END:
        message.content.update(recorddict_from_proto(RecordDictProto.FromString(part)))
    return message
