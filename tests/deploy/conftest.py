"""A deployment with three sites, dealt the merchants of the tiny marketplace by the command itself."""

import re

import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.experiment.run import run_experiment
from fed_distill.merchant.app import build_app
from fed_distill.reporting.callbacks import CallbackList
from tests.conftest import RecordingGrid

SITES = ("north", "south", "west")


@pytest.fixture(scope="session")
def command():
    """A function that runs ``fed-distill sites ...``; gives the result, errors raised but for exits."""

    def run(*arguments):
        return CliRunner().invoke(app, ["sites", *map(str, arguments)], catch_exceptions=False)

    return run


@pytest.fixture
def experiment(tiny_experiment, tmp_path):
    return tiny_experiment(tmp_path / "runs", {"controls": ["server"]})


@pytest.fixture
def deployment(command, experiment, tmp_path):
    """Folder of a deployment whose sites have data; its server is at a port where nobody listens."""
    file = tmp_path / "experiment.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    folder = tmp_path / "deployment"
    done = command("init", folder, "--sites", ",".join(SITES), "--port", 1, "--experiment", file, "--rehearse")
    assert done.exit_code == 0
    return folder


@pytest.fixture
def permit(deployment):
    """A function that puts another line into the ``site.toml`` of some sites, all of them if none is named."""

    def change(key, line, *names):
        for name in names or SITES:
            path = deployment / "sites" / name / "site.toml"
            text, found = re.subn(rf"(?m)^{key} = .*$", line, path.read_text(encoding="utf-8"))
            assert found == 1
            path.write_text(text, encoding="utf-8")

    return change


@pytest.fixture
def run_over(deployment):
    """A function that runs an experiment over the deployment's sites; gives its folder and what was on the wire."""

    def run(experiment):
        sites = sorted(deployment.glob("sites/*/site.toml"))
        grid = RecordingGrid(build_app(), experiment.to_run_config(), len(sites))
        for context, site in zip(grid._contexts.values(), sites, strict=True):
            context.node_config["site"] = str(site)
        return run_experiment(experiment, grid, CallbackList([])), grid.wire

    return run
