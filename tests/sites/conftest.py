"""A deployment with three sites, dealt the merchants of the tiny marketplace by the command itself."""

import pytest
from typer.testing import CliRunner

from fed_distill.cli.main import app

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
