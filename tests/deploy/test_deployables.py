"""``server/`` and ``clients/``: the apps of a checkout, and the examples that an operator and a site start from."""

import csv
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import clients.app
import server.app
from fed_distill.cli.main import app as cli
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.sample import write_sample
from fed_distill.data.tasks import RELEVANCE
from fed_distill.deploy import server_app
from fed_distill.experiment.preflight import check_settings
from fed_distill.merchant import app
from fed_distill.merchant.manifest import Manifest

ROOT = Path(__file__).parents[2]


def test_the_apps_are_those_of_the_package():
    assert server.app.app is server_app.app
    assert clients.app.app is app.app


def test_the_servers_example_is_a_private_experiment_over_real_sites():
    experiment = Experiment.read(ROOT / "server" / "experiment.toml")
    check_settings(experiment)
    assert experiment.data.clients == "elsewhere"
    assert (experiment.privacy.unit, experiment.data.task) == ("example", RELEVANCE.name)


def test_the_servers_example_runs_on_the_files_that_it_names(tmp_path, monkeypatch):
    """The sample of a generated marketplace in their place: three shops are the server's, without a merchant column."""
    write_sample(tmp_path)
    with (tmp_path / "grades.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row[-1] in ("shop", "merchant-1", "merchant-2", "merchant-3")]
    with (tmp_path / "graded.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(row[:-1] for row in rows)
    monkeypatch.chdir(tmp_path)
    example = ROOT / "server" / "experiment.toml"
    found = CliRunner().invoke(
        cli, ["sites", "init", "deployment", "--sites", "north", "--experiment", str(example)], catch_exceptions=False
    )
    assert found.exit_code == 0
    assert (
        "proxy.json has the texts of 20,000 proxy examples and goes to all sites: they must be public" in found.stdout
    )
    data = load(Experiment.read(example).data)
    assert set(data.public.merchants) == {"server"} and not data.merchants
    assert len(data.proxy) == 20_000
    theirs = {row[1] for row in rows}
    assert sum(title in theirs for title in data.proxy.pairs) < 0.5 * len(data.proxy)  # most are new to the server
    sent = json.loads((tmp_path / "deployment" / "sites" / "north" / "proxy.json").read_text(encoding="utf-8"))
    assert "exact" in sent["task"]["classes"]


def test_a_sites_example_is_closed():
    manifest = Manifest.read(ROOT / "clients" / "site.toml")
    limit, rules = manifest.limits.of("anybody"), manifest.limits.rules
    assert limit.units == ("example",)
    assert limit.max_epsilon == 8.0
    assert (rules.scores, rules.imports) == (False, ())
    assert rules.methods == (Experiment.read(ROOT / "server" / "experiment.toml").federation.method,)


@pytest.mark.parametrize("folder", ["server", "clients"])
def test_links_of_a_readme_lead_somewhere(folder):
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all((ROOT / folder / link).exists() for link in links)
