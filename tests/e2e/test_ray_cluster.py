"""The recipe of docs/how-to/scaling.md: `flwr run .` on a Ray cluster of two nodes, here both on this machine.

Each merchant's training notes the Ray node that it ran on; the student is that of the in-process run.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file

from fed_distill import Experiment, run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NODE = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
NOTING = '''
"""FedAvg with distillation that notes where merchants are trained: a file a Ray node, a line a merchant."""

from dataclasses import dataclass
from pathlib import Path

import ray

from fed_distill.methods.fedavg_kd import FedAvgKD


@dataclass(frozen=True)
class Noting(FedAvgKD):
    """folder: of the notes; empty for none."""

    folder: str = ""

    def uplink(self, trained, down):
        if self.folder:
            node = ray.get_runtime_context().get_node_id()
            with (Path(self.folder) / node).open("a") as notes:
                notes.write(f"{down.round} {trained.merchant}\\n")
        return super().uplink(trained, down)
'''

pytestmark = pytest.mark.e2e


@pytest.fixture
def engine(tmp_path, free_port):
    """The environment of a SuperLink whose simulations run on a cluster of two nodes with one CPU each."""
    address = f"127.0.0.1:{free_port()}"
    # as nice as the test, not nicer: on a busy machine Ray's workers would wait for everybody else
    environment = {**os.environ, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
    # short, because of the limit on the names of sockets, and its own, so that nobody else's Ray is found or stopped
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        port = address.rpartition(":")[2]
        head = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", folder]
        head += ["--ray-client-server-port", str(free_port())]  # its usual one may be that of another cluster
        processes = []
        try:
            for name, place in (("head", head), ("worker", ["--address", address])):
                with (tmp_path / f"{name}.log").open("w") as log:
                    command = [BIN / "ray", "start", "--node-ip-address", "127.0.0.1", *place, *NODE]
                    processes.append(
                        subprocess.Popen(
                            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                        )
                    )
                wait_for_nodes(address, len(processes), processes, tmp_path)
            yield {"RAY_ADDRESS": address, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        finally:
            for process in reversed(processes):
                end(process)


def wait_for_nodes(address: str, count: int, processes: list[subprocess.Popen], logs: Path) -> None:
    """Until so many nodes of the cluster are alive, as its head tells."""
    look = (
        "import sys, ray._raylet as ray\n"
        "client = ray.GcsClient(address=sys.argv[1])\n"
        "print(sum(node.state == 0 for node in client.get_all_node_info().values()))"
    )
    while all(process.poll() is None for process in processes):
        seen = subprocess.run([sys.executable, "-c", look, address], capture_output=True, text=True)
        if seen.returncode == 0 and int(seen.stdout) >= count:
            return
        time.sleep(0.2)
    raise RuntimeError("\n".join(log.read_text() for log in sorted(logs.glob("*.log"))))


def end(process: subprocess.Popen) -> None:
    """End a node and all that it started: it leads a process group of its own."""
    process.terminate()
    process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_cluster_of_two_nodes_trains_on_both_and_gives_the_student_of_the_in_process_runtime(
    superlink, tmp_path, distance, monkeypatch
):
    (tmp_path / "noting.py").write_text(NOTING)
    monkeypatch.syspath_prepend(tmp_path)
    notes = tmp_path / "notes"
    notes.mkdir()
    common = {"runtime.cache": str(tmp_path / "cache"), "runtime.callbacks": [], "runtime.threads": 1, "controls": []}
    base = Experiment.read(ROOT / "experiments" / "marketplace.toml").tiny().with_changes(common)
    method = {"federation.method": "noting:Noting", "federation.options": {"proxy_steps": 4, "local_epochs": 1}}
    here = run(base.with_changes({"runtime.folder": str(tmp_path / "here"), **method}))
    there = base.with_changes(
        {
            **method,
            "runtime.folder": str(tmp_path / "there"),
            "runtime.sites": 2,
            "federation.options.folder": str(notes),
        }
    )
    config = tmp_path / "run_config.toml"
    config.write_text(tomli_w.dumps(there.to_run_config()))
    command = [BIN / "flwr", "run", str(ROOT), "test", "--run-config", str(config), "--stream"]
    done = subprocess.run(command, env=superlink, capture_output=True, text=True, cwd=tmp_path)
    student = tmp_path / "there" / base.name / "student" / "model.safetensors"
    assert student.exists(), done.stdout + done.stderr
    trained = [path.read_text().splitlines() for path in notes.iterdir()]
    assert len(trained) == 2  # Ray nodes
    assert all({line.split()[0] for line in lines} == {"1", "2"} for lines in trained)
    merchants = [line for lines in trained for line in lines]
    assert len(merchants) == len(set(merchants)) == 2 * len(set(here.merchants["merchant"]))
    assert distance(load_file(student), load_file(here.student / "model.safetensors")) < 1e-5
