"""Micro-batching: requests that arrive while a batch is computed are computed together in the next one.

The first request of an idle service does not wait: its batch starts in the same turn of the event loop, with what has
arrived in that turn. Under load, batches grow by themselves, and a request waits for one batch at most unless
``max_rows`` is exceeded. Clipper (Crankshaw et al., NSDI 2017, section 4.3) compares this with batches that wait.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Overloaded(Exception):
    """More rows are waiting than the service admits."""


@dataclass
class _Waiting(Generic[Job, Answer]):
    job: Job
    rows: int
    answer: "asyncio.Future[Answer]"


class MicroBatcher(Generic[Job, Answer]):
    """Runs jobs in batches, one batch at a time in a thread of ``executor``. For one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Job]], Sequence[Answer]],
        executor: Executor,
        max_rows: int,
        max_waiting: int,
        observe: Callable[[int], None],
    ) -> None:
        """run: computes the answers of a batch, in a thread. max_rows: rows of a batch, unless one job has more.
        max_waiting: rows that may wait. observe: called with the rows of each batch."""
        self._run, self._executor = run, executor
        self._max_rows, self._max_waiting, self._observe = max_rows, max_waiting, observe
        self._waiting: deque[_Waiting[Job, Answer]] = deque()
        self._rows = 0
        self._busy = False

    @property
    def waiting(self) -> int:
        """Rows that wait for the next batch."""
        return self._rows

    async def compute(self, job: Job, rows: int) -> Answer:
        """Return the answer of ``job``, which has ``rows`` rows.

        :raises Overloaded: too many rows are waiting; a job of an empty queue is always admitted
        """
        if self._waiting and self._rows + rows > self._max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        one = _Waiting[Job, Answer](job, rows, loop.create_future())
        self._waiting.append(one)
        self._rows += rows
        if not self._busy:
            self._busy = True
            loop.call_soon(self._start)
        return await one.answer

    def _start(self) -> None:
        batch: list[_Waiting[Job, Answer]] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self._max_rows):
            one = self._waiting.popleft()
            self._rows -= one.rows
            if not one.answer.done():  # its request was cancelled
                batch.append(one)
                rows += one.rows
        if not batch:
            self._busy = False
            return
        self._observe(rows)
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, [one.job for one in batch])
        running.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: Sequence[_Waiting[Job, Answer]], done: "asyncio.Future[Sequence[Answer]]") -> None:
        self._start()  # before the answers are written, so that the thread goes on meanwhile
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, answer in zip(batch, done.result(), strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)
