"""The ServerApp runs the experiment of the run config."""

import stat
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fed_distill.coordinator.released import NOISE_KEY
from fed_distill.deploy import server_app
from fed_distill.errors import ConfigError
from fed_distill.experiment.grid import InProcessGrid


class RealGrid(Grid):
    """Any grid but those of simulations."""

    run = None
    set_run = create_message = get_node_ids = push_messages = pull_messages = send_and_receive = None


RealGrid.__abstractmethods__ = frozenset()


def test_over_real_sites_noise_is_drawn_from_a_secret_of_the_servers_own(tiny_experiment, tmp_path, monkeypatch):
    """Whatever is no simulation is real: who adds a grid and forgets to say so gets a secret."""
    conducted = []
    monkeypatch.setattr(server_app, "run_experiment", lambda *given: conducted.append(given[-1]) or Path("runs"))
    monkeypatch.setattr(server_app, "show", lambda folder: None)
    context = Context(1, 1, {}, RecordDict(), tiny_experiment(tmp_path / "runs").to_run_config())
    for grid in (InProcessGrid(lambda message, context: message, {}), RealGrid(), RealGrid()):
        server_app.app(grid, context)
    simulated, first, second = conducted
    assert simulated == ""
    path = tmp_path / "runs" / NOISE_KEY
    assert first == second == path.read_text(encoding="ascii").strip() and len(first) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"readable by other users: run chmod 600"):
        server_app.app(RealGrid(), context)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="5 characters; a secret requires at least 32"):
        server_app.app(RealGrid(), context)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_run_ends_with_its_table_and_path_unless_logs_are_json(tiny_experiment, tmp_path, monkeypatch, style):
    shown = []
    monkeypatch.setattr(server_app, "run_experiment", lambda *_: Path("runs") / "tiny")
    monkeypatch.setattr(server_app, "show", shown.append)
    experiment = tiny_experiment(tmp_path, {"runtime.logs": style})
    context = Context(1, 1, {}, RecordDict(), experiment.to_run_config())
    server_app.app(InProcessGrid(lambda message, context: message, {}), context)
    assert shown == ([Path.cwd() / "runs" / "tiny"] if style == "text" else [])


def test_an_error_says_in_a_line_what_to_change_in_the_run_config(tiny_experiment, tmp_path, caplog):
    experiment = tiny_experiment(tmp_path)
    (experiment.runtime.folder / experiment.name).mkdir(parents=True)
    (experiment.runtime.folder / experiment.name / "something").touch()
    context = Context(1, 1, {}, RecordDict(), experiment.to_run_config())
    with pytest.raises(ConfigError, match="exists: continue this run"):
        server_app.app(InProcessGrid(lambda message, context: message, {}), context)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "--resume is runtime.resume = true in the run config" in said
