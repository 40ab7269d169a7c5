"""Open-loop load on ``/rank``: requests are sent at planned times, whatever has been answered.

A load whose clients wait for an answer before they send the next request spares a slow service the requests that it
delays (Schroeder et al., "Open versus closed: a cautionary tale", NSDI 2006), and leaves them out of the latencies
(Tene, "How not to measure latency": coordinated omission). Here latency counts from the planned time.
"""

import asyncio
import itertools
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from uvicorn.loops.auto import auto_loop_factory

from fed_distill.errors import ConfigError
from fed_distill.serving.load_client import Connection, Target

Arrivals = Literal["poisson", "constant"]
Seconds = npt.NDArray[np.float64]
_WORDS = ("usb", "hub", "cable", "kettle", "phone", "case", "charger", "lamp", "red", "steel", "mini", "65w", "cotton")
_QUERIES = 2000
"""Different queries that are made up, and requests that are made before a load whose titles repeat."""
_LOOKUPS = re.compile(rb'^fed_distill_vector_lookups_total\{result="(hit|miss)"\} ([\d.e+]+)$', re.MULTILINE)


@dataclass(frozen=True)
class LoadPlan:
    """What is sent.

    rate: requests a second. titles: of each request. distinct: different titles; None: each title is sent once, in this
    load or any other. queries: of which each request has one; empty: made up. connections: at once. timeout: seconds
    after the planned time at which a request is given up. retry: send a request again, once and at once, when its
    connection broke or could not be opened, as a proxy does with requests that change nothing.
    """

    rate: float
    seconds: float
    titles: int = 10
    arrivals: Arrivals = "poisson"
    distinct: int | None = 20_000
    queries: Sequence[str] = ()
    connections: int = 64
    timeout: float = 10.0
    retry: bool = False
    seed: int = 0

    def times(self) -> Seconds:
        """Return the planned times, seconds from the start; ConfigError if there is none."""
        if self.arrivals == "constant":
            times: Seconds = np.arange(round(self.rate * self.seconds)) / self.rate
        else:
            draw = np.random.default_rng(self.seed)
            most = int(self.rate * self.seconds + 10 * (self.rate * self.seconds) ** 0.5 + 10)
            times = np.cumsum(draw.exponential(1 / self.rate, most))
            times = times[times < self.seconds]
        if not len(times):
            raise ConfigError(
                f"{self.rate:g} requests a second for {self.seconds:g} seconds are none: raise one of them"
            )
        return times


@dataclass
class LoadResult:
    """What was seen.

    latencies: seconds from the planned time to the whole answer, of answers with status 200. failed: first attempts
    that failed, by kind; lost: those of them that failed for good, by the kind of their last attempt. late: seconds by
    which the generator itself sent each request too late. waited: requests that had to wait for a connection. cpu: CPU
    seconds of the generator. repeated: share of titles that this load had sent before. hits: share of texts that the
    service found in its cache meanwhile, if ``/metrics`` tells.
    """

    planned: int
    latencies: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    waited: int = 0
    cpu: float = 0.0
    seconds: float = 0.0
    repeated: float = 0.0
    hits: float | None = None

    def latency(self, percent: float) -> float:
        """Return a percentile of the latencies, seconds; infinity if nothing was answered."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else float("inf")


def run_load(url: str, plan: LoadPlan, key: str | None = None) -> LoadResult:
    """Send the requests of ``plan`` to the service at ``url`` and return what was seen.

    :raises ConfigError: the URL is none, or the plan has no request
    """
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        return runner.run(_Load(Target.of(url, key), plan).run())


class _Load:
    def __init__(self, target: Target, plan: LoadPlan) -> None:
        self._target, self._plan, self._times = target, plan, plan.times()
        self._bodies, repeated = _bodies(plan, len(self._times))
        self._found = LoadResult(len(self._times), repeated=repeated)
        self._waiting: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
        self._idle = 0

    async def run(self) -> LoadResult:
        before, cpu = await self._lookups(), time.process_time()
        senders = [asyncio.create_task(self._send()) for _ in range(self._plan.connections)]
        began = time.perf_counter() + 0.1
        for planned in began + self._times:
            body = next(self._bodies)
            if (pause := planned - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            self._found.late.append(time.perf_counter() - planned)
            self._found.waited += self._waiting.qsize() >= self._idle
            self._waiting.put_nowait((planned, self._target.request("POST", "/rank", body)))
        for _ in senders:
            self._waiting.put_nowait(None)
        await asyncio.gather(*senders)
        self._found.seconds = time.perf_counter() - began
        self._found.cpu = time.process_time() - cpu
        after = await self._lookups()
        if before is not None and after is not None and sum(after) > sum(before):
            self._found.hits = (after[0] - before[0]) / (sum(after) - sum(before))
        return self._found

    async def _send(self) -> None:
        """Send what waits, one request after the other, on one connection."""
        connection: Connection | None = None
        while True:
            self._idle += 1
            one = await self._waiting.get()
            self._idle -= 1
            if one is None:
                break
            planned, request = one
            connection, problem = await self._attempt(connection, planned, request)
            if problem:
                self._found.failed[problem] += 1
                if self._plan.retry and problem in ("broken", "not connected"):
                    connection, problem = await self._attempt(connection, planned, request)
            if problem:
                self._found.lost[problem] += 1
            else:
                self._found.latencies.append(time.perf_counter() - planned)
        if connection is not None:
            connection.close()

    async def _attempt(
        self, connection: Connection | None, planned: float, request: bytes
    ) -> tuple[Connection | None, str]:
        """Send a request; return the connection, if it can be used again, and the kind of failure, empty if none."""
        try:
            async with asyncio.timeout(planned + self._plan.timeout - time.perf_counter()):
                try:
                    if connection is None or not connection.usable:
                        connection = await Connection.open(self._target)
                except OSError:
                    return None, "not connected"
                status, _ = await connection.ask(request)
        except TimeoutError:
            if connection is not None:
                connection.close()
            return None, "timeout"
        except ConnectionError:
            return None, "broken"
        return connection, "" if status == 200 else f"status {status}"

    async def _lookups(self) -> tuple[float, float] | None:
        """Return hits and misses of the cache so far; None if ``/metrics`` is not for this key, or has none."""
        try:
            async with asyncio.timeout(self._plan.timeout):
                connection = await Connection.open(self._target)
                status, body = await connection.ask(self._target.request("GET", "/metrics"))
        except OSError:
            return None
        connection.close()
        found = {name: float(value) for name, value in _LOOKUPS.findall(body)}
        return (found[b"hit"], found[b"miss"]) if status == 200 and len(found) == 2 else None


def _bodies(plan: LoadPlan, count: int) -> tuple[Iterator[bytes], float]:
    """Return the bodies of ``count`` requests, and the share of their titles that were sent before."""
    draw = np.random.default_rng(plan.seed + 1)
    words = np.array(_WORDS)
    queries = plan.queries or [" ".join(draw.choice(words, 3)) for _ in range(_QUERIES)]

    def body(titles: Sequence[str]) -> bytes:
        return json.dumps({"query": queries[int(draw.integers(len(queries)))], "titles": titles}).encode()

    if plan.distinct is None:
        mark, numbers = secrets.token_hex(4), itertools.count()
        kinds = [" ".join(chosen) for chosen in draw.choice(words, (1000, 6))]

        def fresh() -> list[str]:
            return [f"{kinds[number % 1000]} {mark}{number}" for number in itertools.islice(numbers, plan.titles)]

        return (body(fresh()) for _ in itertools.repeat(None)), 0.0
    catalogue = [" ".join(draw.choice(words, 7)) + f" {number}" for number in range(plan.distinct)]
    chosen = draw.integers(plan.distinct, size=(min(count, _QUERIES), plan.titles))
    made = [body([catalogue[number] for number in row]) for row in chosen]
    return itertools.cycle(made), 1.0 - len(np.unique(chosen)) / (count * plan.titles)


def warmed(plan: LoadPlan, seconds: float) -> LoadPlan:
    """Return a load of the same titles for ``seconds``, to fill the caches before the one that is measured."""
    return replace(plan, seconds=seconds)
