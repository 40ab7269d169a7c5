"""Shared by the runs on Flower's simulation engine: a SuperLink of a test's own."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
CONNECTION = """
[superlink]
default = "test"
[superlink.test]
address = "127.0.0.1:{port}"
insecure = true
options.num-supernodes = 2
options.backend.client-resources.num-cpus = 1
"""


@pytest.fixture
def engine() -> dict[str, str]:
    """What the environment of the simulation engine has beside the test's; a Ray of its own where nothing is named."""
    return {}


@pytest.fixture
def superlink(tmp_path, engine, free_port):
    """The environment of a `flwr` command that reaches a SuperLink of its own; no dependency is installed by it."""
    port = free_port()
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        **engine,
    }
    arguments = ["--simulation", "--insecure", "--port", str(port), "--disable-runtime-dependency-installation"]
    with (tmp_path / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "flower-superlink", *arguments], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
        )
        try:
            wait_until_it_answers(process, port)
            yield environment
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def free_port():
    """A function that finds a port that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


def wait_until_it_answers(process: subprocess.Popen, port: int) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the SuperLink ended before it answered")
