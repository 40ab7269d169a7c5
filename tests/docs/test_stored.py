"""Numbers in the README and the documentation are those of the stored results."""

from datetime import date

import pytest

from docs.hooks import stored
from docs.hooks.site import ROOT

TABLE = (
    "| method | nDCG@10 | sent |\n| --- | ---: | ---: |\n| **fedmd** | 0.9385 ± 0.0051 | 48.3 kB |\n| server |  | – |\n"
)
PAGE = f"Before.\n\n<!-- some-study -->\n{TABLE}\nAfter.\n"
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with ``PAGE`` and no stored table."""
    monkeypatch.setattr(stored, "DOCS", tmp_path)
    monkeypatch.setattr(stored, "FOLDER", tmp_path / "stored")
    (tmp_path / "stored").mkdir()
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def record(monkeypatch, folder, table):
    monkeypatch.setattr(stored.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": "abc1234\n"}))
    monkeypatch.setattr(stored.sys, "stdin", open_text(folder, table))
    stored.main(["some-study", "--command", "fed-distill study x.toml"])


def open_text(folder, text):
    path = folder / "printed.txt"
    path.write_text(f"report: runs/x\n{text}", encoding="utf-8")
    return path.open(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tables_are_those_that_are_stored(page):
    if page.relative_to(ROOT / "docs" if page.is_relative_to(ROOT / "docs") else ROOT).as_posix() not in stored.OTHERS:
        assert stored.problems(page.read_text(encoding="utf-8")) == []


def test_each_stored_table_has_its_origin_and_is_shown():
    shown = {one["name"] for page in PAGES for one in stored.marked(page.read_text(encoding="utf-8"))}
    names = [path.stem for path in stored.FOLDER.glob("*.json")]
    assert len(names) >= 16
    for name in names:
        table = stored.read(name)
        assert name in shown
        assert table.command and len(table.commit) >= 7 and date.fromisoformat(table.date)
        assert {len(row) for row in table.rows} == {len(table.columns)}
        files = [word for word in table.command.split() if word.startswith("experiments/")]
        assert [file for file in files if not (ROOT / file).is_file()] == []


def test_a_number_that_differs_is_found(monkeypatch, folder):
    assert stored.problems(PAGE) == ["table some-study is not stored: docs/results/stored/some-study.json"]
    record(monkeypatch, folder, TABLE)
    assert stored.problems(PAGE) == []
    assert stored.problems(PAGE.replace("0.9385", "0.9386")) == [
        "table some-study: there is no row fedmd | 0.9386 ± 0.0051 | 48.3 kB"
    ]
    fewer = "<!-- some-study -->\n| method | sent |\n| --- | --- |\n| fedmd | 48.3 kB |\n"
    assert stored.problems(fewer) == [], "a copy may leave out rows and columns"
    assert stored.problems(fewer.replace("sent", "bytes")) == ["table some-study: there is no column 'bytes'"]


def test_a_table_that_is_stored_again_is_replaced_in_its_pages(monkeypatch, folder):
    record(monkeypatch, folder, TABLE.replace("48.3", "48.4"))
    text = (folder / "page.md").read_text(encoding="utf-8")
    assert text == PAGE.replace("48.3", "48.4")
    assert stored.read("some-study").rows == [["fedmd", "0.9385 ± 0.0051", "48.4 kB"], ["server", "", "–"]]
    captioned = stored.captioned(text)
    assert "*Printed by `fed-distill study x.toml`; recorded in commit `abc1234`, " in captioned
    assert captioned.startswith("Before.") and captioned.endswith("\nAfter.\n")
