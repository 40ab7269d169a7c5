"""Requests a second and latency of ``/rank``, by an open-loop load in a process of its own; a reload under load.

Open loop: requests are sent at their planned times whatever has been answered, and latency counts from the planned
time, so that a slow service is not spared the requests it delays (Schroeder et al., NSDI 2006; "coordinated
omission"). The load is part of the machine's work: its share of the CPU is shown beside the service's.

    python experiments/benchmarks/serving.py EXPORT
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WORDS = ("usb", "hub", "cable", "kettle", "phone", "case", "charger", "lamp", "red", "steel", "mini", "65w", "cotton")
_CATALOGUE = 20_000
"""Different titles: more than a test sends at once, and fewer than the service keeps."""


@dataclass(frozen=True)
class Load:
    """What one load saw. latencies: seconds of each answer. failed: answers other than 200, and broken connections.
    cpu: CPU seconds of the load. seconds: duration."""

    latencies: Sequence[float]
    failed: int
    cpu: float
    seconds: float


async def _load(port: int, titles: int, rate: float, seconds: float, connections: int, seed: int) -> Load:
    draw = np.random.default_rng(seed)
    catalogue = [" ".join(draw.choice(_WORDS, 7)) + f" {number}" for number in range(_CATALOGUE)]
    count = int(rate * seconds)
    bodies = [
        json.dumps({"query": catalogue[draw.integers(2000)][:24], "titles": [catalogue[i] for i in chosen]}).encode()
        for chosen in draw.integers(_CATALOGUE, size=(min(count, 2000), titles))
    ]
    head = "POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    waiting: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()
    latencies: list[float] = []
    failed = 0

    async def connection() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (one := await waiting.get()) is not None:
            planned, request = one
            try:
                writer.write(request)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", answer)
                await reader.readexactly(int(length[1]) if length else 0)
                failed += not answer.startswith(b"HTTP/1.1 200")
            except (OSError, asyncio.IncompleteReadError):
                failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            latencies.append(time.perf_counter() - planned)
        writer.close()

    tasks = [asyncio.create_task(connection()) for _ in range(connections)]
    began = time.perf_counter() + 0.2
    for number in range(count):
        planned = began + number / rate
        if (pause := planned - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        waiting.put_nowait((planned, requests[number % len(requests)]))
    for _ in tasks:
        waiting.put_nowait(None)
    await asyncio.gather(*tasks)
    return Load(latencies, failed, 0.0, time.perf_counter() - began)


def _loaded(port: int, titles: int, rate: float, seconds: float, connections: int) -> Load:
    """Run a load in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_load, (port, titles, rate, seconds, connections))


def _run_load(port: int, titles: int, rate: float, seconds: float, connections: int) -> Load:
    asyncio.run(_load(port, titles, rate, 2.0, connections, seed=0))  # fills the cache of vectors
    before = time.process_time()
    found = asyncio.run(_load(port, titles, rate, seconds, connections, seed=0))
    return Load(found.latencies, found.failed, time.process_time() - before, found.seconds)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print one line a load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="folder that fed-distill export wrote")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each load")
    parser.add_argument("--rates", default="10:1000,100:300", help="titles:requests a second, separated by commas")
    parser.add_argument("--connections", type=int, default=64)
    chosen = parser.parse_args()
    command = [sys.executable, "-m", "fed_distill.cli.main", "serve", str(chosen.export), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as service:
        try:
            port = _port(service)
            print("titles  planned/s  answered/s  p50 ms  p99 ms  failed  CPU service  CPU load  load average")
            for text in chosen.rates.split(","):
                titles, _, rate = text.partition(":")
                before = _cpu_seconds(service.pid)
                found = _loaded(port, int(titles), float(rate), chosen.seconds, chosen.connections)
                used = (_cpu_seconds(service.pid) - before) / (found.seconds + 2.0)
                print(_line(int(titles), float(rate), found, used), flush=True)
            print(f"a reload every second: {_reloaded(service, port, chosen.connections)} failed requests", flush=True)
        finally:
            service.send_signal(signal.SIGTERM)


def _port(service: "subprocess.Popen[str]") -> int:
    """Wait for the line with the port, and let the log go on unseen."""
    assert service.stderr is not None
    for line in service.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=service.stderr.read, daemon=True).start()
            return int(found[1])
    raise SystemExit("the service has not started")


def _line(titles: int, rate: float, found: Load, service: float) -> str:
    p50, p99 = np.percentile(found.latencies, (50, 99)) * 1000
    answered = len(found.latencies) / found.seconds
    return (
        f"{titles:6d}  {rate:9.0f}  {answered:10.0f}  {p50:6.1f}  {p99:6.1f}  {found.failed:6d}"
        f"  {100 * service:9.0f} %  {100 * found.cpu / found.seconds:6.0f} %  {os.getloadavg()[0]:12.1f}"
    )


def _reloaded(service: "subprocess.Popen[str]", port: int, connections: int) -> int:
    """Return the number of failed requests while the student is loaded again every second for five seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        load = pool.apply_async(_run_load, (port, 10, 200.0, 5.0, connections))
        while not load.ready():
            service.send_signal(signal.SIGHUP)
            load.wait(1.0)
        return load.get().failed


if __name__ == "__main__":
    main()
