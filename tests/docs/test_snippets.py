"""Commands and TOML in the README and the documentation are accepted by the program."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pandas as pd
import pytest
import typer
from pydantic import ValidationError

from fed_distill.cli.main import app
from fed_distill.config import DataConfig, Experiment, parse_setting
from fed_distill.config.keys import has_key
from fed_distill.data import load
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import ConfigError
from fed_distill.merchant.manifest import Observing
from fed_distill.serving.service_config import ServeConfig
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.row_tuning import RowTuning
from fed_distill.sweeps.space import OF_THE_FILE, Tuning

ROOT = Path(__file__).parents[2]
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
"""Made of the commands themselves: its blocks are forms of use."""
PAGES = [ROOT / "README.md", *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page != COMMANDS)]
BLOCK = re.compile(r"^```(sh|toml)\n(.*?)^```", re.M | re.S)
PROGRAM = re.compile(r"^(?:\.venv/bin/)?fed-distill (?!--help)")


def blocks(language):
    return [
        pytest.param(found[2], id=f"{page.relative_to(ROOT)}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
        for page in PAGES
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if found[1] == language
    ]


def commands(text):
    """The lines of a block that call this program, as lists of words."""
    lines = (line.strip() for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if PROGRAM.match(line)]


def parse(words):
    """Parse a command without running it; return its path and its parameters."""
    command, context = typer.main.get_command(app), None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name="fed-distill", parent=context)
        name, found, words = command.resolve_command(context, [word for word in words if word != ">"])
        command = found
    return name, command.make_context(name, words, parent=context).params


@pytest.mark.parametrize("text", [block for block in blocks("sh") if commands(block.values[0])])
def test_commands_have_options_keys_and_files_that_exist(text):
    for words in commands(text):
        output = words.index(">") if ">" in words else len(words)
        name, parameters = parse(words[:output])
        beside = {"study": ("name", "title", "seeds", "data_seeds"), "tune": OF_THE_FILE}.get(name, ())
        for setting in parameters.get("settings") or ():
            key, _ = parse_setting(setting)
            assert has_key(key) or key in beside, f"{name}: {key}"
        for value in parameters.values():
            if isinstance(value, Path) and value.parts[:1] == ("experiments",):
                {"study": Study, "tune": Tuning}.get(name, Experiment).read(ROOT / value)


def test_a_wrong_option_is_found():
    (words,) = commands("fed-distill run experiments/quickstart.toml \\\n  --fast # a comment")
    with pytest.raises(click.NoSuchOption):
        parse(words)


def problem(text):
    """What is wrong with a TOML block; None if its keys exist and have values of their types."""
    tables = tomllib.loads(text)
    try:
        if tables.keys() <= Experiment.model_fields.keys():
            Experiment.parse(tables)
        elif "axis" in tables:
            Study.parse({**tables, "base": tomllib.loads((ROOT / "experiments" / tables["base"]["file"]).read_text())})
        elif "service" in tables:
            ServeConfig.model_validate(tomllib.loads(text.replace('"..."', f'"{0:064x}"')))
        else:
            (name,) = tables
            {"observing": Observing, "tuning": RowTuning}[name].model_validate(tables[name])
    except (ConfigError, ValidationError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_has_keys_that_exist(text):
    assert problem(text) is None


TABLES = [text for text in blocks("toml") if tomllib.loads(text.values[0]).get("data", {}).get("dataset") == "table"]


@pytest.mark.parametrize("text", TABLES)
def test_a_table_is_read_as_it_is_written(text, tmp_path):
    """Keys that exist may still not do together, such as a proxy set of public texts without any."""
    data = tomllib.loads(text)["data"]
    grades = RELEVANCE.classes
    rows = [
        {"text": f"query {query}", "pair": f"title {query} {grade} {shop}", "label": grade, "merchant": f"shop {shop}"}
        for shop in range(6)
        for query in range(40)
        for grade in grades
    ]
    columns = data["options"]["columns"]
    table = pd.DataFrame([{columns[role]: row[role] for role in columns} for row in rows])
    table.to_csv(tmp_path / "table.csv", index=False)
    options = {**data["options"], "path": tmp_path / "table.csv"}
    assert len(load(DataConfig.model_validate({**data, "options": options})).merchants) > 0


def test_a_wrong_key_is_found():
    assert "federation.round" in problem("[federation]\nround = 3\n")
