"""``server/`` and ``clients/``: the apps of a checkout, and the examples that an operator and a site start from."""

import re
from pathlib import Path

import pytest

import clients.app
import server.app
from fed_distill.config import Experiment
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
