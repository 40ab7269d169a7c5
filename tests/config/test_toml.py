"""A mistake in a user's file is one line: the file, the key counted as people count, and what is wrong with it."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fed_distill.config.toml import first_problem, read_toml
from fed_distill.errors import ConfigError


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
        ({}, "inner: Field required"),
        ({"inner": [3]}, "inner.1: Input should be a table"),
        ({"inner": [], "place": 3}, "place: Input should be a path"),
        ({"inner": [], "name": "a/b"}, "name: String should match pattern '^[a-z]*$', not 'a/b'"),
        (
            {"inner": [], "name": 2026},
            "name: Input should be a valid string: write it in quotes (on a command line within others: "
            "'name=\"2026\"')",
        ),
    ],
)
def test_the_first_problem_is_said_after_its_key(tables, problem):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(tables)
    assert first_problem(caught.value) == problem


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
    with pytest.raises(ConfigError, match=r"^cannot read settings .*none\.toml: No such file or directory$"):
        read_toml(tmp_path / "none.toml", "settings")
    for content in (b"name = ", b"name = '\xff'"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: "):
            read_toml(tmp_path / "bad.toml", "settings")
