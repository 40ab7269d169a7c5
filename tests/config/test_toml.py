"""A mistake in a user's file is one line: the file, the key counted as people count, and what is wrong with it."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from fed_distill.config import Experiment
from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.space import Tuning

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    even: int = 0

    @field_validator("even")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise ValueError(f"{value} is odd: take an even number")
        return value


class Outer(BaseModel):
    inner: list[Inner]
    place: Path = Path()
    name: str = Field("", pattern="^[a-z]*$")


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"inner": [{"even": 2}, {"odd": 1}]}, "unknown key inner.2.odd"),
        ({"inner": [{"even": 1}]}, "inner.1.even: 1 is odd: take an even number"),
        ({}, "inner is missing"),
        ({"inner": [3]}, "inner.1 must be a table, not 3"),
        ({"inner": [], "place": 3}, "place must be a path, not 3"),
        ({"inner": [], "name": "a/b"}, "name must be text that matches '^[a-z]*$', not 'a/b'"),
        (
            {"inner": [], "name": 2026},
            "name must be a string, not 2026: write it in quotes (on a command line within others: 'name=\"2026\"')",
        ),
    ],
)
def test_the_first_problem_is_said_after_its_key(tables, problem):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(tables)
    assert first_problem(caught.value) == problem


class Short(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: Literal["small"] = "small"
    width: Annotated[int, Field(ge=1)] | None = None


class Long(Short):
    length: float = Field(1.0, gt=0)
    flag: bool = False


WIDTH = "whole number, at least 1; default: none"


class Choices(BaseModel):
    model_config = ConfigDict(extra="forbid")

    each: list[Short] = []
    one: Annotated[
        Annotated[Short, Tag("<Short>")] | Annotated[Long, Tag("<Long>")],
        Discriminator(lambda table: "<Long>" if "long" in str(table) else "<Short>"),
    ] = Short()


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"eahc": []}, "unknown key eahc; did you mean each?"),
        ({"each": [{}, {"wdith": 1}]}, "unknown key each.2.wdith; did you mean each.2.width?"),
        ({"one": {"wdith": "long"}}, "unknown key one.wdith; did you mean one.width?"),
        ({"one": {"lenght": "long"}}, "unknown key one.lenght; did you mean one.length?"),
        ({"one": {"lenght": 1}}, "unknown key one.lenght"),
        ({"nothing_like_it": 1}, "unknown key nothing_like_it"),
        (
            {"each": [{"width": "two"}]},
            "each.1.width must be a whole number, not 'two' (whole number, at least 1; default: none)",
        ),
        (
            {"each": [{"width": 2.5}]},
            "each.1.width must be a whole number, not 2.5 (whole number, at least 1; default: none)",
        ),
        ({"each": [{"width": 0}]}, "each.1.width must be at least 1, not 0 (whole number, at least 1; default: none)"),
        ({"each": [{"size": "long"}]}, "each.1.size must be 'small', not 'long' (default: \"small\")"),
        ({"each": {}}, "each must be a list"),
        ({"one": {"length": "long"}}, "one.length must be a number, not 'long' (number, greater than 0; default: 1.0)"),
        ({"one": {"flag": "long"}}, "one.flag must be true or false, not 'long' (true or false; default: false)"),
    ],
)
def test_a_problem_is_said_in_the_words_of_the_file_and_the_nearest_key_is_suggested(tables, problem):
    with pytest.raises(ValidationError) as caught:
        Choices.model_validate(tables)
    assert first_problem(caught.value, Choices) == problem


def test_a_file_is_read_as_utf_8(tmp_path):
    path = tmp_path / "file.toml"
    path.write_text('[table]\nkey = "kühl"\n', encoding="utf-8")
    assert read_toml(path, "settings") == {"table": {"key": "kühl"}}


def test_a_byte_order_mark_and_line_ends_of_another_system_are_read(tmp_path):
    path = tmp_path / "file.toml"
    path.write_bytes(b'\xef\xbb\xbf[table]\r\nkey = "k\xc3\xbchl"\r\n')
    assert read_toml(path, "settings") == {"table": {"key": "kühl"}}


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("utf-16", 1)])
def test_the_line_that_is_not_in_utf_8_is_named(tmp_path, encoding, line):
    path = tmp_path / "file.toml"
    path.write_text('[table]\nkey = "kühl"\n', encoding=encoding)
    with pytest.raises(ConfigError, match=rf"file\.toml is not valid TOML: line {line} is not in UTF-8: save the file"):
        read_toml(path, "settings")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"^cannot read settings {tmp_path}: Is a directory$"):
        read_toml(tmp_path, "settings")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "nine.toml").write_text("")
    (tmp_path / "of-the-sites.toml").write_text("")
    with pytest.raises(
        ConfigError, match=r"^cannot read settings .*none\.toml: No such .*; did you mean .*/nine.toml\?$"
    ):
        read_toml(tmp_path / "none.toml", "settings")
    (tmp_path / "nine.toml").unlink()
    with pytest.raises(ConfigError, match=r"^cannot read settings .*none\.toml: No such file or directory$"):
        read_toml(tmp_path / "none.toml", "settings")
    for content in (b"name = ", b"name = '\xff'"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: "):
            read_toml(tmp_path / "bad.toml", "settings")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"runtime.folder": "a\0b"}, "runtime.folder"),
        ({"data.options": {"path": "a\0b"}}, "data.options.path"),
        ({"teacher.options": {"columns": ["x", "y\0"]}}, "teacher.options.columns.2"),
        ({"teacher.options": {"x\0": 1}}, r"teacher.options.'x\x00'"),
    ],
)
def test_a_null_character_is_said_where_it_is(changes, where):
    with pytest.raises(ConfigError, match=rf"{re.escape(where)} has the character U\+0000: remove it"):
        Experiment().with_changes(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainig.server.epochs": 3}, "unknown key trainig.server.epochs; did you mean training.server.epochs?"),
        ({"training.sever.epoch": 3}, "unknown key training.sever.epoch; did you mean training.server.epochs?"),
        ({"rounds": 3}, "unknown key rounds; did you mean federation.rounds?"),
        ({"privacy": {"unit": "example", "epsilno": 3}}, "unknown key privacy.epsilno; did you mean privacy.epsilon?"),
        ({"federation.nothing_like_it": 3}, "unknown key federation.nothing_like_it"),
        (
            {"federation.rounds": 0},
            "federation.rounds must be at least 1, not 0 (whole number, at least 1; default: 10)",
        ),
        ({"runtime.folder": 3}, 'runtime.folder must be a path, not 3 (path; default: "runs")'),
    ],
)
def test_a_key_of_an_experiment_is_corrected_by_its_whole_name(changes, message):
    with pytest.raises(ConfigError) as caught:
        Experiment().with_changes(changes)
    assert str(caught.value) == f"experiment: {message}"


def test_a_key_that_many_tables_have_is_not_guessed():
    with pytest.raises(ConfigError, match=r"unknown key epochs$"):
        Experiment().with_changes({"epochs": 3})
    with pytest.raises(
        ConfigError, match=r"unknown key patience; did you mean teacher\.patience or federation\.patience\?$"
    ):
        Experiment().with_changes({"patience": 3})


@pytest.mark.parametrize("read", [Study.read, Tuning.read])
def test_what_several_keys_of_studies_and_tunings_may_be_is_said_too(read, tmp_path):
    kind = "methods" if read == Study.read else "tune"
    with pytest.raises(ConfigError, match=r"not 'x' \(whole number, at least 1.*; default: \d+\)"):
        read(EXPERIMENTS / f"{kind}.toml", {"seeds": "x"})


def test_a_file_without_a_name_is_called_as_the_file(tmp_path):
    for file, name in (("short.toml", "short"), ("My töpfe (2).toml", "My-t-pfe-2"), ("ü.toml", "experiment")):
        (tmp_path / file).write_text("seed = 1\n", encoding="utf-8")
        assert Experiment.read(tmp_path / file).name == name
    assert Experiment.read(tmp_path / "short.toml", {"name": "other"}).name == "other"


@pytest.mark.parametrize(
    ("read", "file", "message"),
    [
        (Experiment.read, "methods", "has [[axis]] and is not an experiment: use `fed-distill study {path}`"),
        (Experiment.read, "tune", "has [[search]] and is not an experiment: use `fed-distill tune {path}`"),
        (Experiment.read, "methods_tuned", "has extends and is not an experiment: use `fed-distill study {path}`"),
        (Study.read, "tune", "has [[search]] and is not a study: use `fed-distill tune {path}`"),
        (Study.read, "quickstart", "is not a study: if it is an experiment, use `fed-distill run {path}`"),
        (Tuning.read, "methods", "has [[axis]] and is not a tuning: use `fed-distill study {path}`"),
        (Tuning.read, "quickstart", "is not a tuning: if it is an experiment, use `fed-distill run {path}`"),
    ],
)
def test_a_file_of_another_kind_names_the_right_command(read, file, message):
    path = EXPERIMENTS / f"{file}.toml"
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(message.format(path=path))


@pytest.mark.parametrize(("name", "command"), [("experiment", "run"), ("study", "study")])
def test_the_folder_of_a_run_or_study_in_the_place_of_its_file_is_named(tmp_path, name, command):
    (tmp_path / f"{name}.toml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"it is the folder of .*`fed-distill {command} .*{name}\.toml`$"):
        Experiment.read(tmp_path)
