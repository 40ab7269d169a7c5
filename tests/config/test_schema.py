"""The JSON schema of experiments accepts what the program accepts, and finds single mistakes; judged by jsonschema."""

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from fed_distill.config import Experiment
from fed_distill.config.schema import experiment_schema

FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))
SINGLE = [path for path in FILES if not {"axis", "search", "extends", "base"} & tomllib.loads(path.read_text()).keys()]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(json.dumps(experiment_schema()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_there_are_experiments_to_validate():
    assert {"quickstart", "pricerunner", "chain"} <= {path.stem for path in SINGLE}


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.stem)
def test_a_shipped_experiment_is_valid(validator, path):
    assert list(validator.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("unit", ["none", "example", "group", "label", "merchant", "vote"])
def test_a_complete_experiment_of_every_privacy_unit_is_valid(validator, unit):
    method = {"vote": {"federation.method": "pate"}}.get(unit, {})
    budget = {} if unit == "none" else {"privacy.epsilon": 3.0}
    complete = tomllib.loads(Experiment().with_changes({"privacy.unit": unit, **budget, **method}).to_toml())
    assert list(validator.iter_errors(complete)) == []


@pytest.mark.parametrize(
    "tables",
    [
        {"federation": {"ruonds": 3}},
        {"federation": {"rounds": "many"}},
        {"federation": {"rounds": 0}},
        {"data": {"partition": "alphabet"}},
        {"privacy": {"unit": "example", "epsilno": 1}},
        {"privacy": {"epsilon": 1}},
        {"privacy": {"unit": "label", "noise_multiplier": 1.0}},
        {"controls": ["server", "sevrer"]},
    ],
)
def test_a_mistake_is_found_that_the_program_finds(validator, tables):
    with pytest.raises(Exception, match="experiment: "):
        Experiment.parse(tables)
    assert list(validator.iter_errors(tables))
