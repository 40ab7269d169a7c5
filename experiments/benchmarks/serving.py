"""Requests a second and latency of ``/rank`` by ``fed-distill load-test`` in a process of its own; a reload under load.

The load is part of the machine's work: its share of the CPU is shown beside the service's. ``--workers 1,2`` serves
with each number of workers in turn, in one run, as a busy machine's figures compare only with each other.

    python experiments/benchmarks/serving.py EXPORT
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from fed_distill.serving.load import LoadPlan, LoadResult, run_load, warmed

_WARM_UP_SECONDS = 2.0


def _loaded(port: int, plan: LoadPlan) -> LoadResult:
    """Run a load in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_load, (port, plan))


def _run_load(port: int, plan: LoadPlan) -> LoadResult:
    run_load(f"http://localhost:{port}", warmed(plan, _WARM_UP_SECONDS))
    return run_load(f"http://localhost:{port}", plan)


def _cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a service: of its process and of its workers."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return _own_cpu_seconds(process) + sum(_own_cpu_seconds(int(child)) for child in children)


def _own_cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print one line a load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="folder that fed-distill export wrote")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each load")
    parser.add_argument("--rates", default="10:1000,100:300", help="titles:requests a second, separated by commas")
    parser.add_argument("--workers", default="1", help="numbers of workers, separated by commas")
    parser.add_argument("--connections", type=int, default=64)
    chosen = parser.parse_args()
    print("workers  titles  planned/s  answered/s  p50 ms  p99 ms  failed  CPU service  CPU load  load average")
    for workers in map(int, chosen.workers.split(",")):
        _measure(chosen, workers)


def _measure(chosen: argparse.Namespace, workers: int) -> None:
    """Print the lines of a service with so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        student = json.dumps(str(chosen.export.resolve()))
        Path(folder, "serve.toml").write_text(f"[service]\nstudent = {student}\nworkers = {workers}\nport = 0\n")
        command = [sys.executable, "-m", "fed_distill.cli.main", "serve", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as service:
            try:
                port = _port(service)
                for text in chosen.rates.split(","):
                    titles, _, rate = text.partition(":")
                    plan = LoadPlan(
                        float(rate), chosen.seconds, int(titles), "constant", connections=chosen.connections
                    )
                    before = _cpu_seconds(service.pid)
                    found = _loaded(port, plan)
                    used = (_cpu_seconds(service.pid) - before) / (found.seconds + _WARM_UP_SECONDS)
                    print(_line(workers, plan, found, used), flush=True)
                plan = LoadPlan(200.0, 5.0, connections=chosen.connections)
                print(f"a reload every second: {_reloaded(service, port, plan)} failed requests", flush=True)
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


def _line(workers: int, plan: LoadPlan, found: LoadResult, service: float) -> str:
    p50, p99 = (1000 * found.latency(percent) for percent in (50, 99))
    return (
        f"{workers:7d}  {plan.titles:6d}  {plan.rate:9.0f}  {len(found.latencies) / found.seconds:10.0f}  {p50:6.1f}"
        f"  {p99:6.1f}  {found.failed.total():6d}  {100 * service:9.0f} %  {100 * found.cpu / found.seconds:6.0f} %"
        f"  {os.getloadavg()[0]:12.1f}"
    )


def _reloaded(service: "subprocess.Popen[str]", port: int, plan: LoadPlan) -> int:
    """Return the number of failed requests while the student is loaded again every second."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        load = pool.apply_async(_run_load, (port, plan))
        while not load.ready():
            service.send_signal(signal.SIGHUP)
            load.wait(1.0)
        return load.get().failed.total()


if __name__ == "__main__":
    main()
