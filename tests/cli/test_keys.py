"""``fed-distill keys`` describes keys as the classes have them, and prints the JSON schema."""

import json

import pytest

from fed_distill.config.reference import keys
from fed_distill.config.schema import experiment_schema


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def test_one_key_is_described(entered):
    code, out, _ = entered("keys", "federation.rounds")
    lines = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1].strip() for line in out.splitlines()}
    assert code == 0
    assert lines["key"] == "federation.rounds"
    assert (lines["type"], lines["limits"], lines["default"]) == ("whole number", "at least 1", "10")


def test_a_key_of_several_privacy_units_has_each_meaning(entered):
    out = entered("keys", "privacy.epsilon")[1]
    assert out.count("meaning") == 2
    assert "privacy.unit = label" in out


def test_a_table_and_the_whole_list_have_their_keys(entered):
    out = entered("keys", "training.server")[1]
    listed = [line.split()[0] for line in out.splitlines()[1:] if line.startswith("training.")]
    assert listed == [one.name for one in keys() if one.name.startswith("training.server.")]
    everything = entered("keys")[1]
    assert all(one.name in everything for one in keys())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trainig.server.epochs", "there is no key trainig.server.epochs; did you mean training.server.epochs"),
        ("ruonds", "did you mean federation.rounds"),
        ("federation.options.proxy_steps", "`fed-distill methods NAME`"),
        ("data.options.rows", "`fed-distill data list NAME` describe them"),
        ("zzzz", "there is no key zzzz. `fed-distill keys` lists all"),
    ],
)
def test_an_unknown_key_is_one_line_with_the_nearest(entered, key, message):
    code, out, errors = entered("keys", key)
    assert (code, out) == (2, "")
    assert message in errors


def test_the_schema_is_printed(entered):
    code, out, _ = entered("keys", "--schema")
    assert (code, json.loads(out)) == (0, experiment_schema())
    assert entered("keys", "federation.rounds", "--schema")[0] == 2
