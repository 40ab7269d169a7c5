"""Commands and TOML in the README and the documentation are accepted by the program."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import typer
from pydantic import ValidationError

from fed_distill.cli.main import app
from fed_distill.config import Experiment, parse_setting
from fed_distill.config.keys import has_key
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


def test_a_wrong_key_is_found():
    assert "federation.round" in problem("[federation]\nround = 3\n")
