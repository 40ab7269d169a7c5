"""What fails when a worker is killed, and when two replicas are restarted behind a proxy, under load."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from fed_distill.serving.load import LoadPlan, run_load
from tests.serving.processes import balanced, ended, paused, served
from tests.serving.services import until
from tests.serving.test_workers import write

PROXY = Path(__file__).parents[2] / "docs" / "serving" / "haproxy.cfg"


@pytest.fixture
def export(exported):
    return exported("two-tower")[1]


class Load:
    """A load in a thread. Requests go on until the test has done what it does, and are then counted."""

    def __init__(self, url, connections, retry=False):
        self.url, self.found = url, []
        self.plan = LoadPlan(50.0, 1.0, 3, connections=connections, timeout=100.0, retry=retry)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._done.is_set():
            self.found.append(run_load(self.url, self.plan))

    def __enter__(self):
        self._thread.start()
        until(lambda: self.found)
        return self

    def finish(self):
        """Wait for the load that is under way, and for one that began afterwards."""
        after = len(self.found) + 2
        until(lambda: len(self.found) >= after)

    def __exit__(self, *_):
        self.finish()
        self._done.set()
        self._thread.join()

    def failed(self):
        return sum((found.failed for found in self.found), Counter())

    def lost(self):
        return sum((found.lost for found in self.found), Counter())


def test_a_killed_worker_costs_only_what_it_was_answering(export, tmp_path):
    """Paused before it is killed, so that requests are under way at it: their connections break, one request on each,
    and a client that sends such a request again loses nothing."""
    connections = 8
    with served(write(tmp_path / "service", export), "--port", "0") as service:
        with Load(service.url, connections, retry=True) as load:
            while not load.failed():  # what waited may be a question for the cache's hits, which no load counts
                until(lambda: any(killed_at_work(service.address, worker, load) for worker in alive(service)))
                until(lambda: len(alive(service)) == 2)
                until(lambda: service.ready())
                load.finish()
        failed, lost = load.failed(), load.lost()
    kills = "".join(service.lines).count("ended by SIGKILL and is started again")
    assert kills
    assert set(failed) == {"broken"}
    assert 1 <= failed.total() <= connections * kills
    assert lost == Counter()


def alive(service):
    return [worker for worker in service.workers if not ended(worker)]


def killed_at_work(address, worker, load):
    """Kill a worker if a request comes to wait at it within a load; return whether it has been killed.

    The supervisor kills it instead if the load takes longer than a worker may be silent."""
    if not unread(address, worker):
        return False
    with paused(worker):
        before = len(load.found)
        until(lambda: any(unread(address, worker)) or len(load.found) > before or ended(worker))
        if any(unread(address, worker)):
            os.kill(worker, signal.SIGKILL)
            until(lambda: ended(worker))
    return ended(worker)


def unread(address, process):
    """Bytes that a process has not read of each of its connections at a port (proc_net_tcp(5)), none once it ended."""
    sockets, descriptors = set(), []
    with contextlib.suppress(FileNotFoundError):
        descriptors = list(Path(f"/proc/{process}/fd").iterdir())
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor)):
                sockets.add(found[1])
    port, found = f":{address[1]:04X}", []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and fields[1].endswith(port) and fields[9] in sockets:
            found.append(int(fields[4].partition(":")[2], 16))
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.mark.parametrize("proxy", ["balancer", "haproxy"])
def test_a_rolling_restart_of_two_replicas_fails_no_request(export, tmp_path, proxy):
    if proxy == "haproxy" and shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    folder = write(tmp_path / "service", export, workers=1, drain_seconds=3.0, open=True)
    ports = {"replica-1": free_port(), "replica-2": free_port()}
    with contextlib.ExitStack() as stack:

        def start(name):
            return Replica(stack, folder, ports[name])

        services = {name: start(name) for name in ports}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        if proxy == "balancer":
            url, used = stack.enter_context(balanced(urls))
            in_use = used.copy
        else:
            url, in_use = stack.enter_context(haproxy(tmp_path, ports))
        until(lambda: len(in_use()) == 2)
        with Load(url, connections=4) as load:
            for name in ports:  # as an orchestrator does: stop one, wait for its end, start it, wait until it is used
                services[name].close()
                services[name] = start(name)
                until(lambda name=name: name in in_use())
        assert load.failed() == Counter()
        assert sum(len(found.latencies) for found in load.found) == sum(found.planned for found in load.found)


class Replica:
    """A service on a port of its own that can be stopped before the test ends."""

    def __init__(self, stack, folder, port):
        self._own = contextlib.ExitStack()
        self.running = self._own.enter_context(served(folder, "--port", str(port)))
        stack.callback(self._own.close)

    def close(self):
        self._own.close()
        assert self.running.process.returncode == 0


@contextlib.contextmanager
def haproxy(folder, ports):
    """The proxy of docs/serving with the replicas' addresses; yield its URL and a function: the replicas in use."""
    port, control = free_port(), folder / "control"
    text = PROXY.read_text().replace("bind :8080", f"bind 127.0.0.1:{port}")
    for name, replica in ports.items():
        text = text.replace(f"{name}:8080", f"127.0.0.1:{replica}")
    text = text.replace("global\n", f"global\n    stats socket {control}\n")
    (folder / "haproxy.cfg").write_text(text)

    def in_use():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(control))
            connection.sendall(b"show stat\n")
            told = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            return {line.split(",")[1] for line in told.splitlines() if ",UP," in line and "replica-" in line}
        return set()

    with subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]) as process:
        try:
            yield f"http://127.0.0.1:{port}", in_use
        finally:
            process.kill()
