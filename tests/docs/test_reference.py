"""The generated reference has all keys, commands, parts, errors and files; each is described."""

import inspect

import pytest

import fed_distill
from docs.hooks import commands, errors, keys, parts
from docs.hooks.stored import DOCS
from fed_distill import errors as library_errors
from fed_distill.cli.main import app
from fed_distill.config import CONTROLS, Experiment
from fed_distill.config.controls import MEANINGS
from fed_distill.config.reference import keys as described
from fed_distill.errors import FedDistillError
from fed_distill.merchant.manifest import Manifest
from fed_distill.reporting.store import LOCK
from fed_distill.serving.service_config import ServeConfig
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.space import Tuning

FILES = {
    "reference/experiment.md": (Experiment, ""),
    "reference/studies.md": (Study, "study"),
    "reference/serve.md": (ServeConfig, ""),
    "reference/site.md": (Manifest, ""),
}


@pytest.mark.parametrize("page", FILES)
def test_every_key_has_its_entry(made, page):
    root, prefix = FILES[page]
    found = described(root)
    assert len(found) > 20
    missing = [key.name for key in found if f'<span id="{keys.anchor(key.name, prefix)}">' not in made[page]]
    assert missing == []


def test_every_key_of_a_tuning_has_its_entry(made):
    page = made["reference/studies.md"]
    assert [key.name for key in described(Tuning) if f'<span id="tune-{key.name}">' not in page] == []


@pytest.mark.parametrize("root", [Experiment, Study, Tuning, ServeConfig, Manifest])
def test_no_key_is_without_description(root):
    assert [key.name for key in described(root) if not key.description.strip()] == []


def test_an_anchor_is_given_once(made):
    for page in FILES:
        found = [
            line.partition('<span id="')[2].partition('"')[0] for line in made[page].splitlines() if "<span" in line
        ]
        assert len(found) == len(set(found)) > 20


def test_every_command_option_and_argument_is_described(made):
    import click
    import typer

    root = typer.main.get_command(app)
    found = dict(commands.commands(root, click.Context(root, info_name="fed-distill")))
    assert {"fed-distill run", "fed-distill data describe", "fed-distill sites init"} <= set(found)
    assert [
        name for name in found if f"## `{name.removeprefix('fed-distill ')}`" not in made["reference/commands.md"]
    ] == []
    rows = [row for row in made["reference/commands.md"].splitlines() if row.startswith("| `")]
    assert len(rows) == sum(len(command.params) for command in found.values())
    assert [row for row in rows if row.rstrip("| ").count("|") < 3] == [], "a row without its meaning"


def test_every_part_has_its_row(made):
    page = made["reference/parts.md"]
    for title, _, registry in parts.SECTIONS:
        section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert [name for name in registry if f"| `{name}` |" not in section] == [], title
    assert tuple(MEANINGS) == CONTROLS


def test_every_public_error_has_meaning_and_remedy(made):
    public = [one for _, one in inspect.getmembers(library_errors, inspect.isclass) if one is not FedDistillError]
    assert len(public) > 10
    for one in public:
        meaning, remedy = errors.meaning_and_remedy(one)
        assert meaning and remedy, f"{one.__name__} lacks a paragraph `Remedy: ...` in its docstring"
        assert f"| `{one.__name__}` |" in made["reference/errors.md"]


def test_every_public_name_is_in_the_python_reference(pages):
    page = pages["docs/reference/python.md"]
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert shown == set(fed_distill.__all__)


def test_every_file_of_a_run_is_explained(pages, tiny_run):
    page = pages["docs/reference/run-files.md"]
    folder = tiny_run.result.folder
    names = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path.name != LOCK]
    assert [name for name in names if f"| `{name}` |" not in page] == []
    assert [path.name for path in tiny_run.result.student.iterdir() if f"`{path.name}`" not in page] == []


def test_the_reference_in_the_repository_is_that_of_the_code(made):
    written = {path: text for path, text in made.items() if path.startswith("reference/")}
    stale = [path for path, text in written.items() if (DOCS / path).read_text(encoding="utf-8") != text]
    assert stale == [], "write it again: python -m docs.hooks.site"
