"""The same app over Flower's deployment engine: a server and three sites in own processes, with keys and TLS.

Each site has a folder of its own and reads nothing but it. The student is that of the in-process run of the same seed;
who has no registered key, or no TLS, is not let in.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from fed_distill import run
from fed_distill.cli.main import app as command_line
from fed_distill.data import load
from fed_distill.deploy.identity import make_server_certificate, make_site_key
from fed_distill.deploy.registered import presences
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.store import read_summary

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SITES = ("north", "south", "west")
ROUNDS = 5

pytestmark = pytest.mark.e2e


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@dataclass
class Deployment:
    """A deployment on this machine; what it starts is stopped by ``stop``, children included."""

    folder: Path
    port: int
    processes: list[subprocess.Popen] = field(default_factory=list)
    sites: dict[str, subprocess.Popen] = field(default_factory=dict)
    server: subprocess.Popen | None = None

    @property
    def environment(self):
        own = {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        return {**os.environ, **own, "FLWR_HOME": str(self.folder / "server" / "flwr")}

    def start(self, log, *command, **environment):
        with (self.folder / f"{log}.log").open("w") as file:
            process = subprocess.Popen(
                [str(part) for part in command],
                env={**self.environment, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_server(self, trusted=True):
        server = self.start("server", self.folder / "server" / "start.sh")
        authority = self.folder / "ca" / "ca.crt" if trusted else None
        wait_until(lambda: answers(self.port, authority), server, "server")
        self.server = server

    def stop_server(self):
        os.killpg(self.server.pid, signal.SIGTERM)
        self.server.wait()

    def start_site(self, folder, port):
        return self.start(folder.name, folder / "start.sh", PORT=str(port), SITE_IS_HERE=str(folder))

    def run_command(self, *options):
        """``fed-distill sites run`` of the deployment's experiment."""
        return [BIN / "fed-distill", "sites", "run", self.folder / "experiment.toml", self.folder, *options]

    def run(self, *command):
        return subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, timeout=400
        )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def stop(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            for process in self.processes:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    continue


def wait_until(true, process, what):
    """Wait for a condition for as long as the process lives, at most five minutes."""
    until = time.monotonic() + 300
    while not true():
        assert process.poll() is None, f"{what}: the process ended before"
        assert time.monotonic() < until, f"{what}: not within five minutes"
        time.sleep(0.1)


def answers(port, authority):
    """Whether there is a server, which shows a certificate by ``authority``; None: whatever it shows."""
    try:
        with socket.create_connection(("localhost", port), timeout=1) as plain:
            if authority is not None:
                context = ssl.create_default_context(cafile=str(authority))
                context.wrap_socket(plain, server_hostname="localhost").close()
    except OSError:
        return False
    return True


def is_online(deployment, site):
    keys, authority = deployment.folder / "server" / "keys", deployment.folder / "ca" / "ca.crt"
    seen = {one.what: one.detail for one in presences(f"localhost:{deployment.port}", authority, keys)}
    return seen[f"site {site}"] == "online"


@pytest.fixture(scope="module")
def experiment(tiny_experiment, tmp_path_factory):
    """Five rounds of ``fedavg-kd`` under DP, on PriceRunner where it is at hand, else on the generated marketplace."""
    real = {"data.dataset": "pricerunner", "data.options": {}, "data.min_rows": 30}
    changes = {
        **(real if "FED_DISTILL_DATA" in os.environ else {}),
        "controls": ["server"],
        "federation.rounds": ROUNDS,
        "privacy": {"unit": "example", "epsilon": 4.0, "batch_size": 16},
        "runtime.threads": 1,
        "runtime.measure_speed": False,
    }
    return tiny_experiment(tmp_path_factory.mktemp("here"), changes)


@pytest.fixture(scope="module")
def deployment(experiment, tmp_path_factory):
    """Written by the command, server and sites started, the sites' keys registered."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "experiment.toml").write_text(experiment.to_toml())
    port, *site_ports = free_ports(1 + len(SITES))
    arguments = ["sites", "init", str(folder), "--sites", ",".join(SITES), "--port", str(port)]
    arguments += ["--experiment", str(folder / "experiment.toml"), "--rehearse"]
    assert CliRunner().invoke(command_line, arguments, catch_exceptions=False).exit_code == 0
    manifest = folder / "sites" / "north" / "site.toml"
    told = manifest.read_text().replace('logs = "text"', 'logs = "json"').replace("metrics = false", "metrics = true")
    manifest.write_text(told)
    for path in folder.glob("sites/*/site.toml"):  # what it is written with is for one run, and here are several
        path.write_text(re.sub(r"(?m)^max_epsilon = \S+", "max_epsilon = 100.0", path.read_text()))
    deployment = Deployment(folder, port)
    try:
        deployment.start_server()
        script, before = folder / "server" / "register.sh", "registered"
        for keys in ([os.path.relpath(folder / "server" / "keys" / "north.pub")], []):
            registered = deployment.run(script, *keys)
            assert registered.returncode == 0, registered.stdout + registered.stderr
            assert registered.stdout.splitlines()[0] == f"north: {before}"
            before = "registered before"
        assert registered.stdout.splitlines()[1:] == ["south: registered", "west: registered"]
        for name, site_port in zip(SITES, site_ports, strict=True):
            deployment.sites[name] = deployment.start_site(folder / "sites" / name, site_port)
        for name in SITES:
            wait_until(lambda name=name: is_online(deployment, name), deployment.sites[name], name)
        yield deployment
    finally:
        deployment.stop()


def test_the_student_is_that_of_the_in_process_run(deployment, experiment, distance, tmp_path):
    done = deployment.run(*deployment.run_command("--set", f"runtime.folder={tmp_path}"))
    student = tmp_path / experiment.name / "student" / "model.safetensors"
    assert done.returncode == 0 and student.exists(), done.stdout + done.stderr + deployment.log("north")
    assert f"report: {tmp_path / experiment.name / 'report.html'}" in done.stdout
    here = run(experiment)
    assert distance(load_file(student), load_file(here.student / "model.safetensors")) < 1e-5
    summary = read_summary(tmp_path / experiment.name)
    assert summary["privacy"]["epsilon"] == pytest.approx(here.summary["privacy"]["epsilon"])
    ledgers = [Ledgers(deployment.folder / "sites" / name / "state" / "ledgers").merchants() for name in SITES]
    charged = [merchant for own in ledgers for merchant in own]
    assert all(ledgers) and len(set(charged)) == len(charged) == summary["merchants"] == 5
    check_what_north_tells(deployment, ledgers[SITES.index("north")])


def check_what_north_tells(deployment, merchants):
    """A site answers each message in a process of its own: its counts are those of all of them, its lines are JSON."""
    state = deployment.folder / "sites" / "north" / "state"
    samples = dict(
        line.rsplit(" ", 1)
        for line in (state / "metrics" / "fed_distill.prom").read_text().splitlines()
        if not line.startswith("#")
    )
    assert float(samples['fed_distill_site_trained_total{site="north"}']) == ROUNDS * len(merchants)
    for merchant in merchants:
        spent = Ledgers(state / "ledgers").of(merchant).epsilon("example")
        name = f'fed_distill_epsilon_spent{{merchant="{merchant}",site="north",unit="example"}}'
        assert float(samples[name]) == pytest.approx(spent)
    lines = [json.loads(line) for line in deployment.log("north").splitlines() if line.startswith("{")]
    asked = [line for line in lines if line["message"] == "received a message of type train.merchants"]
    assert len(asked) == ROUNDS and {(line["run"], line["site"]) for line in asked} == {("tiny", "north")}


def test_the_check_finds_nothing_wrong(deployment):
    checked = CliRunner().invoke(command_line, ["sites", "check", str(deployment.folder)], catch_exceptions=False)
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("answers") == 1 + len(SITES)
    assert checked.output.count("online") == len(SITES)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("app", [ROOT / "tests" / "e2e" / "malicious", ROOT], ids=["malicious", "checkout"])
def test_no_app_that_a_server_sends_runs_at_any_site(deployment, app):
    """A thief under the honest app's name and version, and the honest code itself: sites run what they have installed.

    The thief's server says what came back: nothing but refusals. It would leave a file where it is imported.
    """
    before = {name: contents(deployment.folder / "sites" / name / "state") for name in SITES}
    sent = deployment.run(BIN / "flwr", "run", app, "prod", "--stream")
    assert sent.stdout.count("this site accepts") >= len(SITES), sent.stdout + sent.stderr
    assert "TAKEN" not in sent.stdout
    for name in SITES:
        folder = deployment.folder / "sites" / name
        assert "Rejected a message of run" in deployment.log(name)
        assert "rule app: the server sent the app" in deployment.log(name)
        assert contents(folder / "state") == before[name]
        assert not (folder / "imported").exists() and not (folder / "flwr" / "apps").exists()


def test_randomized_labels_leave_sites_only_where_their_own_rules_allow_texts(
    deployment, experiment, distance, tmp_path
):
    label = {"unit": "label", "epsilon": 1.0, "texts_public": True}
    method = {"federation.method": "lp-mst", "federation.options": {}, "federation.rounds": 1}
    labels = experiment.with_changes({"privacy": label, "name": "labels", **method})
    file = deployment.folder / "labels.toml"
    file.write_text(labels.to_toml())
    command = [BIN / "fed-distill", "sites", "run", file, deployment.folder, "--set"]
    manifests = {path: path.read_text() for path in deployment.folder.glob("sites/*/site.toml")}
    try:
        for path, text in manifests.items():
            allowed = text.replace('methods = ["fedavg-kd"]', 'methods = ["lp-mst"]')
            path.write_text(allowed.replace('units = ["example"]', 'units = ["example", "label"]'))
        refused = deployment.run(*command, f"runtime.folder={tmp_path / 'refused'}")
        assert refused.returncode != 0
        assert "rule texts: texts of training examples are not sent" in refused.stdout + refused.stderr
        for path in manifests:
            path.write_text(path.read_text().replace("texts = false", "texts = true"))
        done = deployment.run(*command, f"runtime.folder={tmp_path}")
        student = tmp_path / "labels" / "student" / "model.safetensors"
        assert done.returncode == 0 and student.exists(), done.stdout + done.stderr + deployment.log("north")
        assert distance(load_file(student), load_file(run(labels).student / "model.safetensors")) < 1e-5
        assert not texts_kept(tmp_path / "labels", labels)
    finally:
        for path, text in manifests.items():
            path.write_text(text)


def texts_kept(folder, experiment):
    """Texts of merchants' training examples that are in a file of ``folder``, though the server has them nowhere."""
    data = load(experiment.data)
    tables = [data.public, data.public_valid, data.proxy, data.valid, data.test]
    tables += [ranked.examples for ranked in (data.ranking_valid, data.ranking_test)]
    of_server = "\n".join({text for table in tables for text in texts(table)})
    own = {text for merchant in data.merchants.values() for text in texts(merchant.train) if text not in of_server}
    assert len(own) > 10
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return [text for text in own if any(text.encode() in content for content in files)]


def texts(table):
    return (*table.texts, *(table.pairs or ()))


def test_a_run_that_fails_at_the_server_is_an_error_of_the_command(deployment):
    failed = deployment.run(*deployment.run_command("--set", "runtime.folder=/proc/nowhere"))
    assert failed.returncode == 2, failed.stdout
    assert "/proc/nowhere" in failed.stdout and "ended as failed" in failed.stderr


def test_an_unknown_key_is_refused(deployment):
    stranger = deployment.folder / "stranger"
    shutil.copytree(deployment.folder / "sites" / "north", stranger, ignore=shutil.ignore_patterns("state", "flwr"))
    make_site_key(stranger)
    (port,) = free_ports(1)
    process = deployment.start_site(stranger, port)
    wait_until(lambda: process.poll() is not None, deployment.server, "unknown key")
    assert process.returncode != 0
    assert "Failed to activate SuperNode" in deployment.log("stranger")
    assert "has not admitted this site's key" in deployment.log("stranger")


def test_a_client_without_tls_is_refused(deployment):
    (port,) = free_ports(1)
    key = deployment.folder / "sites" / "north" / "site.key"
    address = f"localhost:{deployment.port}"
    command = [BIN / "flower-supernode", "--insecure", "--superlink", address, "--port", port, "--max-retries", "1"]
    process = deployment.start("plain", *command, "--auth-supernode-private-key", key)
    wait_until(lambda: process.poll() is not None, deployment.server, "plain client")
    assert process.returncode != 0
    assert "ID:" not in deployment.log("plain")  # what a site that was let in prints


def is_held(folder):
    """Whether a process holds the run in ``folder``."""
    with (folder / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_server_killed_in_a_run_is_started_again_and_the_run_goes_on(deployment, experiment, distance, tmp_path):
    """The SuperLink and its ServerApp get SIGKILL after the first round; the sites stay, and find the new one.

    The ServerApp, whose process holds the run, by itself: left alone it may wait for its SuperLink for ever.
    """
    changes = {"runtime.folder": str(tmp_path), "seed": 1, "federation.rounds": 3}
    there, folder = experiment.with_changes(changes), tmp_path / experiment.name
    rounds = folder / "metrics.jsonl"
    command = deployment.run_command(*(part for key, value in changes.items() for part in ("--set", f"{key}={value}")))
    first = deployment.start("first", *command)
    wait_until(lambda: rounds.exists() and rounds.read_text().count("\n") >= 1, first, "first round")
    os.killpg(deployment.server.pid, signal.SIGKILL)
    deployment.server.wait()
    os.kill(int((folder / ".lock").read_text()), signal.SIGKILL)
    wait_until(lambda: not is_held(folder), deployment.processes[1], "the killed run")
    assert not (folder / "summary.json").exists()
    assert first.wait() == 2 and "cannot be reached" in deployment.log("first")
    deployment.start_server()
    done = deployment.run(*command, "--resume")
    student = folder / "student" / "model.safetensors"
    assert done.returncode == 0 and student.exists(), (
        done.stdout + done.stderr + deployment.log("server") + deployment.log("north")
    )
    here = run(there.with_changes({"runtime.folder": str(tmp_path / "here"), "runtime.sites": 1}))
    assert distance(load_file(student), load_file(here.student / "model.safetensors")) < 1e-5
    for name in SITES:
        ledgers = Ledgers(deployment.folder / "sites" / name / "state" / "ledgers")
        for merchant in ledgers.merchants():
            charges = [entry.charge for entry in ledgers.of(merchant).entries() if entry.charge.seed == 1]
            assert [charge.round for charge in charges] == [0, 1, 2, 3]  # its size, and each round once


def test_a_site_that_meets_an_expired_certificate_ends_and_comes_back_when_it_is_renewed(deployment):
    """Flower's own process would stay, deaf; ended with an error it is started again by systemd or Docker."""
    deployment.stop_server()
    long_ago = datetime.now(UTC) - timedelta(days=1000)
    make_server_certificate(deployment.folder / "ca", deployment.folder / "server", "localhost", long_ago)
    deployment.start_server(trusted=False)
    for name, process in deployment.sites.items():
        wait_until(lambda process=process: process.poll() is not None, deployment.server, name)
        assert process.returncode == 1
        assert "Lost the server" in deployment.log(name)
        assert "must be renewed by the operator" in deployment.log(name)
    deployment.stop_server()
    arguments = ["sites", "init", str(deployment.folder), "--renew"]
    assert CliRunner().invoke(command_line, arguments, catch_exceptions=False).exit_code == 0
    deployment.start_server()
    (port,) = free_ports(1)
    started = [deployment.start_site(deployment.folder / "sites" / "north", port)]

    def is_back():
        if started[-1].poll() is not None:  # Flower still takes it as there, for as long as it waits for a sign of life
            assert "code 2004" in deployment.log("north") and "it is accepted again a minute" in deployment.log("north")
            started.append(deployment.start_site(deployment.folder / "sites" / "north", port))
        return "SuperNode ID" in deployment.log("north") and is_online(deployment, "north")

    wait_until(is_back, deployment.server, "north")
