"""The ServerApp runs the experiment of the run config, and says which setting means nothing under Flower."""

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

import server.app
from fed_distill.errors import ConfigError
from fed_distill.runtime.grid import InProcessGrid


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_are_said_to_have_no_effect_over_flowers_own_grid(
    tiny_experiment, tmp_path, monkeypatch, caplog, workers
):
    conducted = []
    monkeypatch.setattr(server.app, "conduct", lambda *given: conducted.append(given) or Path("runs"))
    monkeypatch.setattr(server.app, "show", lambda folder: None)
    experiment = tiny_experiment(tmp_path, {"runtime.workers": workers})
    grid = InProcessGrid(lambda message, context: message, {})
    context = Context(1, 1, {}, RecordDict(), experiment.to_run_config())
    server.app.app(grid, context)
    ((ran, over, _),) = conducted
    assert (ran, over) == (experiment, grid)
    said = [record.getMessage() for record in caplog.records if "runtime.workers" in record.getMessage()]
    assert len(said) == (workers > 1)
    assert all("runtime.workers = 3 has no effect under `flwr run`" in text for text in said)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_run_ends_with_its_table_and_path_unless_logs_are_json(tiny_experiment, tmp_path, monkeypatch, style):
    shown = []
    monkeypatch.setattr(server.app, "conduct", lambda *_: Path("runs") / "tiny")
    monkeypatch.setattr(server.app, "show", shown.append)
    experiment = tiny_experiment(tmp_path, {"runtime.logs": style})
    context = Context(1, 1, {}, RecordDict(), experiment.to_run_config())
    server.app.app(InProcessGrid(lambda message, context: message, {}), context)
    assert shown == ([Path.cwd() / "runs" / "tiny"] if style == "text" else [])


def test_an_error_says_in_a_line_what_to_change_in_the_run_config(tiny_experiment, tmp_path, caplog):
    experiment = tiny_experiment(tmp_path)
    (experiment.runtime.folder / experiment.name).mkdir(parents=True)
    (experiment.runtime.folder / experiment.name / "something").touch()
    context = Context(1, 1, {}, RecordDict(), experiment.to_run_config())
    with pytest.raises(ConfigError, match="exists already"):
        server.app.app(InProcessGrid(lambda message, context: message, {}), context)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "--resume is runtime.resume = true in the run config" in said
