"""`flwr run .` on Flower's own simulation engine (Ray) gives what the in-process runtime gives."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file

from fed_distill import Experiment, run

ROOT = Path(__file__).parents[2]
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

pytestmark = pytest.mark.e2e


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def superlink(tmp_path):
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


def test_flowers_simulation_gives_the_same_student_as_the_in_process_runtime(superlink, tmp_path, distance):
    base = Experiment.read(ROOT / "experiments" / "quickstart.toml").tiny()
    common = {"runtime.cache": str(tmp_path / "cache"), "runtime.callbacks": [], "runtime.threads": 1}
    here = run(base.with_changes({"runtime.folder": str(tmp_path / "here"), **common}))
    config = tmp_path / "run_config.toml"
    there = base.with_changes({"runtime.folder": str(tmp_path / "there"), **common})
    config.write_text(tomli_w.dumps(there.to_run_config()))
    command = [BIN / "flwr", "run", str(ROOT), "test", "--run-config", str(config), "--stream"]
    done = subprocess.run(command, env=superlink, capture_output=True, text=True, cwd=tmp_path)
    student = tmp_path / "there" / base.name / "student" / "model.safetensors"
    assert student.exists(), done.stdout + done.stderr
    expected = load_file(here.student / "model.safetensors")
    reached = load_file(student)
    assert distance(reached, expected) < 1e-5  # two nodes, one site: other merchants are summed together
