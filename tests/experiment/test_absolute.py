"""Made absolute, an experiment is of the same files in whatever folder a program works."""

from pathlib import Path

import pandas as pd
import pytest

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.errors import ConfigError
from fed_distill.experiment.absolute import absolute, only_names

TABLE = {"dataset": "table", "task": "sentiment", "min_rows": 5, "proxy_size": 10, "max_examples": 40}
COLUMNS = {"text": "text", "label": "label", "merchant": "shop"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a table of four shops' sentiments."""
    folder = tmp_path / "here"
    (folder / "data").mkdir(parents=True)
    rows = [
        {"text": f"offer {number} of {shop}", "label": label, "shop": shop}
        for shop in ("north", "south", "east", "west")
        for number, label in enumerate(["positive", "negative"] * 15)
    ]
    pd.DataFrame(rows).to_csv(folder / "data" / "sales.csv", index=False)
    monkeypatch.chdir(folder)
    return folder


def test_another_working_folder_reads_the_same_data(here, tmp_path, monkeypatch):
    options = {"path": "data/sales.csv", "columns": COLUMNS}
    experiment = Experiment.parse({"data": {**TABLE, "options": options}})
    submitted = absolute(experiment).to_run_config()
    monkeypatch.chdir(tmp_path)
    found = load(Experiment.from_run_config(submitted).data)
    monkeypatch.chdir(here)
    assert found.public.texts == load(experiment.data).public.texts


def flat(experiment):
    """Values by dotted key; options are one value."""

    def walk(prefix, table):
        for key, value in table.items():
            if isinstance(value, dict) and not key.endswith("options"):
                yield from walk(f"{prefix}{key}.", value)
            else:
                yield f"{prefix}{key}", value

    return dict(walk("", experiment.model_dump(mode="json")))


def test_every_path_is_absolute_and_nothing_else_is_changed(here):
    (here / "models" / "shop-bert").mkdir(parents=True)
    (here / "minilm").mkdir()
    changes = {
        "data": {"dataset": "table", "options": {"path": "data/sales.csv", "columns": {"text": "data"}}},
        "data.proxy_dataset": "wands",
        "data.proxy_options": {"path": "../wands"},
        "teacher": {"model": "models/shop-bert", "ensemble": [{"model": "minilm"}, {"model": "data", "seed": 1}]},
        "training.augmentation": {
            "dictionary": "synonyms.txt",
            "translated": 0.1,
            "back_translation": ["models/shop-bert", "hub/not-here"],
        },
        "privacy": {"ledger": "ledgers", "limits": "limits.toml"},
        "runtime": {"folder": "kept", "cache": "/var/cache"},
        "federation.label": "data",
    }
    experiment = Experiment().with_changes(changes)
    before, after = flat(experiment), flat(absolute(experiment))
    parsed = absolute(experiment)
    assert {key for key in after if after[key] != before[key]} == {
        "data.options", "data.proxy_options", "teacher.model", "teacher.ensemble", "privacy.ledger", "privacy.limits",
        "training.augmentation.dictionary", "training.augmentation.back_translation", "runtime.folder",
    }  # fmt: skip
    assert parsed.data.options == {"path": f"{here}/data/sales.csv", "columns": {"text": "data"}}
    assert parsed.data.proxy_options == {"path": f"{here}/../wands"}
    assert parsed.teacher.model == f"{here}/models/shop-bert"
    assert [one.model for one in parsed.teacher.ensemble] == ["minilm", f"{here}/data"]
    assert parsed.training.augmentation.back_translation == (f"{here}/models/shop-bert", "hub/not-here")
    assert parsed.training.augmentation.dictionary == here / "synonyms.txt"
    assert (parsed.privacy.ledger, parsed.privacy.limits) == (here / "ledgers", here / "limits.toml")
    assert (parsed.runtime.folder, parsed.runtime.cache) == (here / "kept", Path("/var/cache"))
    assert absolute(parsed) == parsed


def test_the_usual_folder_of_runs_is_left_to_each_program(here):
    assert absolute(Experiment()) == Experiment()


def test_options_of_a_part_of_ones_own_are_paths_by_their_type(here):
    (here / "shop_parts.py").write_text(
        "from dataclasses import dataclass\nfrom pathlib import Path\n\n"
        "@dataclass\nclass Sales:\n    near: Path | None = None\n    title: str = 'data'\n\n"
        "def teacher(classes: int, pair: bool, max_length: int, vocabulary: Path, title: str = '') -> None: ...\n",
        encoding="utf-8",
    )
    options = {"near": "sales.csv", "title": "data"}
    tables = {
        "data": {"dataset": "shop_parts:Sales", "options": options},
        "teacher": {"model": "shop_parts:teacher", "options": {"vocabulary": "words.txt", "title": "words.txt"}},
    }
    made = absolute(Experiment.parse(tables))
    assert made.data.options == {"near": f"{here}/sales.csv", "title": "data"}
    assert made.teacher.options == {"vocabulary": f"{here}/words.txt", "title": "words.txt"}


def test_an_import_path_that_leads_nowhere_is_named(here):
    with pytest.raises(ConfigError, match="cannot import dataset 'not_there:Sales'"):
        absolute(Experiment.parse({"data": {"dataset": "not_there:Sales", "options": {"path": "x"}}}))


def test_names_have_no_folders(here):
    (here / "models" / "jane_doe").mkdir(parents=True)
    options = {"path": "customers/jane_doe/grades.csv", "columns": COLUMNS, "labels": {"a/b": "positive"}}
    given = {"data": {**TABLE, "options": options}, "teacher": {"model": "models/jane_doe"}}
    found = only_names(Experiment.parse(given))
    assert found.data.options["path"] == "grades.csv" and found.teacher.model == "jane_doe"
    assert found.data.options["labels"] == {"a/b": "positive"}
