"""A run across sites is submitted, followed, and its end told, also where it ends without a word."""

import tomllib
from types import SimpleNamespace

import httpx
import pytest

from fed_distill.config import Experiment
from fed_distill.deploy import submit
from fed_distill.deploy.bundle import bundle, bundle_hash
from fed_distill.deploy.identity import make_site_key
from fed_distill.deploy.submit import Deployed
from fed_distill.errors import ConfigError, TrainingError


@pytest.fixture
def folder(tmp_path):
    keys = tmp_path / "server" / "keys"
    keys.mkdir(parents=True)
    for name in ("north", "south"):
        (keys / f"{name}.pub").write_bytes(make_site_key(tmp_path).strip() + f" {name}\n".encode())
    (tmp_path / "server" / "flwr").mkdir()
    connection = '[superlink.prod]\naddress = "127.0.0.1:8123"\n'
    (tmp_path / "server" / "flwr" / "config.toml").write_text(connection)
    (tmp_path / "address").write_text("fed.example.org:8123\n")
    return tmp_path


class Server:
    """The control API of a server whose run has this log and these states, one at each look."""

    def __init__(self, *states, log=("one\n", "two\n"), error=None):
        self.states, self.log, self.error, self.asked = list(states), log, error, []

    def StartRun(self, request):
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(run_id=7)

    def StreamLogs(self, request):
        return (SimpleNamespace(log_output=part) for part in self.log)

    def ListRuns(self, request):
        status, sub_status, details = self.states.pop(0)
        status = SimpleNamespace(status=status, sub_status=sub_status, details=details)
        return SimpleNamespace(run_dict={request.run_id: SimpleNamespace(status=status)})

    def close(self):
        pass


@pytest.fixture
def run_at(monkeypatch, folder):
    """A function: run an experiment at a server; gives the run's folder, and what was told meanwhile."""
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)

    def run(server):
        monkeypatch.setattr(submit.ControlHttpClient, "from_server_address", lambda *_, **__: server)
        told = []
        deployed = Deployed(folder)
        try:
            return deployed.run(deployed.planned(Experiment(name="try"), None), told.append), told
        except TrainingError as error:
            return error, told

    return run


def test_what_is_submitted_holds_no_code_and_waits_for_all_admitted_sites(run_at, folder):
    server = Server(("finished", "completed", ""))
    where, (first, *log) = run_at(server)
    assert (where, log) == (folder / "server" / "runs" / "try", ["one\n", "two\n"])
    assert f"FLWR_HOME={folder / 'server' / 'flwr'} flwr stop 7 ends the run" in first
    (request,) = server.asked
    assert (request.fab.content, request.fab.hash_str) == (bundle(), bundle_hash())
    sent = tomllib.loads(request.override_config["experiment"].string)
    assert sent["runtime"]["sites"] == 2
    assert sent["runtime"]["folder"] == str(folder / "server" / "runs")


def test_a_log_that_ends_before_its_run_is_no_end(run_at):
    running = ("running", "", "")
    ended, told = run_at(Server(running, running, ("finished", "failed", "No heartbeat received"), log=("one\n",)))
    assert "run 7 ended as failed (No heartbeat received)" in str(ended) and "--resume" in str(ended)
    assert [part for part in told if "waiting" in part] == told[2:]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (httpx.ConnectError("refused"), "cannot be reached .* start it on this machine"),
        (
            httpx.HTTPStatusError("403", request=None, response=httpx.Response(403, text="closed")),
            "rejects this: closed",
        ),
    ],
)
def test_a_server_that_does_not_take_it_is_an_error(run_at, error, told):
    with pytest.raises(ConfigError, match=told):
        run_at(Server(error=error))


def test_what_is_no_deployment_or_has_no_sites_is_told(tmp_path, folder):
    with pytest.raises(ConfigError, match="is not a deployment"):
        Deployed(tmp_path / "nowhere")
    for key in (folder / "server" / "keys").iterdir():
        key.unlink()
    with pytest.raises(ConfigError, match="no site has been admitted"):
        Deployed(folder).planned(Experiment(name="try"), None)


def test_a_folder_that_is_named_is_kept_and_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    planned = Deployed(folder).planned(Experiment(name="try").with_changes({"runtime.folder": "elsewhere"}), 1)
    assert planned.runtime.folder == folder / "elsewhere" and planned.runtime.sites == 1
