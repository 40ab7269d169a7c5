"""Services of the tests in processes of their own, and a balancer before them."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading

import httpx

from tests.serving.services import until

COMMAND = (sys.executable, "-m", "fed_distill.cli.main", "serve")


class Running:
    """A service that runs: its process, its address and the lines of its log so far."""

    def __init__(self, process, lines, address):
        self.process, self.lines, self.address = process, lines, address
        self.url = f"http://{address[0]}:{address[1]}"

    def __iter__(self):
        return iter((self.process, self.address, self.lines))

    @property
    def workers(self):
        """Process of each worker that was started, in order."""
        return [int(found[1]) for line in self.lines if (found := re.search(r"worker \d+ is process (\d+)", line))]

    def ready(self):
        """Whether ``/ready`` answers 200."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=60).status_code == 200
        return False


@contextlib.contextmanager
def served(folder, *options, command=COMMAND, environment=None):
    """Run ``fed-distill serve`` on a free port, or what ``options`` say; stop it afterwards."""
    command = [*command, str(folder), *(options or ("--port", "0"))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        lines, address = [], None
        try:
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://([\d.]+):(\d+)", line):
                    address = found[1], int(found[2])
                    break
            assert address, "".join(lines)
            reader = threading.Thread(target=lambda: lines.extend(process.stderr))
            reader.start()
            yield Running(process, lines, address)
            process.send_signal(signal.SIGTERM)
            process.wait(100)
            reader.join()
        finally:
            process.kill()


def alive(process):
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return stat_of(process) not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def paused(process):
    """Stop a process meanwhile, so that another one answers."""
    os.kill(process, signal.SIGSTOP)
    try:
        until(lambda: stat_of(process) == "T")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def stat_of(process):
    """State of a process, one letter (proc(5))."""
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def ended(process):
    """Whether a process is no more, or waits for its parent to take its exit code."""
    try:
        return stat_of(process) in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def balanced(urls):
    """A balancer of connections before replicas: it asks each for ``/ready`` and connects to one that answers 200.

    urls: of the replicas, by name; may be changed. Yield its own URL and the names of the replicas in use.
    """
    loop, in_use, turn = asyncio.new_event_loop(), set(), [0]

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def connected(reader, writer):
        names = sorted(in_use)
        turn[0] += 1
        url = httpx.URL(urls[names[turn[0] % len(names)]])
        there = await asyncio.open_connection(url.host, url.port)
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async def watch():
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                for name, url in list(urls.items()):
                    ready = False
                    with contextlib.suppress(httpx.HTTPError):
                        ready = (await client.get(f"{url}/ready")).status_code == 200
                    (in_use.add if ready else in_use.discard)(name)
                await asyncio.sleep(0.05)

    async def run():
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        started.append(server.sockets[0].getsockname()[1])
        with contextlib.suppress(asyncio.CancelledError):
            async with server:
                await watch()

    started = []
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    task = loop.create_task(run())
    thread.start()
    try:
        until(lambda: started)
        yield f"http://127.0.0.1:{started[0]}", in_use
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        for left in asyncio.all_tasks(loop):
            left.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def answer_of(connection):
    """All bytes until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
