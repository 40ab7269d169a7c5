"""The page stands alone and says who is protected from whom, by how much, on which assumptions, and what is missing."""

import json
import re
import tomllib
from html.parser import HTMLParser

import pandas as pd
import pytest

from fed_distill.mechanisms.lookup import mechanism
from fed_distill.reporting.glossary import GLOSSARY
from fed_distill.reporting.page import STYLE
from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.findings import answer, audit_sentence, sentences
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.places import Places
from fed_distill.sweeps.promises import ASSUMPTIONS
from fed_distill.sweeps.report import WORDS, write_findings
from fed_distill.sweeps.table import markdown

VOID = {"meta", "br", "link", "img", "input", "hr"}
COMMAND = "fed-distill study x.toml --out y"
FIGURES = ("accuracy", "worst-merchant", "attack", "bytes", "pareto")


class Page(HTMLParser):
    """Collects attributes, ids, rows and text, and checks that tags are balanced."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.rows, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def words(self):
        return re.sub(r"\s+", " ", "".join(self.text)).replace("\u202f", " ")


@pytest.fixture
def write(finished):
    """A function that writes the findings of a study that a test may change first."""
    return lambda: write_findings(finished.study, finished.cells, finished.places, COMMAND)


@pytest.fixture(scope="module")
def whole(finish, tmp_path_factory):
    """A finished study with its findings, for tests that only read: study, cells, places, found, page."""
    ready = finish(tmp_path_factory.mktemp("whole"))
    ready.found = write_findings(ready.study, ready.cells, ready.places, COMMAND)
    ready.results = results_table(ready.study, ready.cells, ready.places)
    ready.combinations = combinations_table(ready.study, ready.results)
    ready.page = Page(ready.found.report.read_text(encoding="utf-8"))
    return ready


@pytest.fixture
def page(whole):
    return whole.page


def test_all_files_are_there(whole):
    folder = whole.places.folder
    assert whole.found.complete
    assert whole.found.report == folder / "report.html"
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.png").stat().st_size > 0
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 0
    results = pd.read_parquet(folder / "results.parquet")
    assert len(results) == len(pd.read_csv(folder / "results.csv")) == len(whole.cells)
    assert len(pd.read_csv(folder / "summary.csv")) == 9
    assert Study.parse(tomllib.loads((folder / "study.toml").read_text(encoding="utf-8"))) == whole.study


def test_the_page_loads_nothing_from_elsewhere(whole, page):
    html = whole.found.report.read_text(encoding="utf-8")
    outside = [
        value
        for name, value in page.attributes
        if name in ("src", "href", "xlink:href", "data", "action", "srcset") and not value.startswith("#")
    ]
    assert outside == []
    assert "@import" not in html and "<script" not in html
    assert not re.search(r"url\((?!#)", html)
    assert STYLE.strip() and STYLE in html
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_answer_comes_first_then_a_sentence_a_series(page, whole):
    words = page.words
    places = [
        words.index(text)
        for text in (
            "What does privacy cost?",
            answer(whole.combinations).replace("\u202f", " "),
            *(f"{series}: {sentence}".replace("\u202f", " ") for series, sentence in sentences(whole.combinations)),
            audit_sentence(whole.results),
            "What was compared",
        )
    ]
    assert places == sorted(places)


def test_units_deltas_counts_assumptions_and_trusted_parties_are_told(page):
    words = page.words
    for unit in ("example", "merchant"):
        told = mechanism(unit).words
        assert told.title in words and told.promise in words and told.assumption in words
    assert mechanism("vote").words.title not in words
    assert all(assumption in words for assumption in ASSUMPTIONS)
    assert "nobody but the merchant" in words
    assert "here 6 merchants, 4,440 training examples in all" in words
    assert "how many examples: with noise; counted" in words and "its scores: exactly" in words
    assert "pld" in words
    assert ["1", "×2.72", "1.0e-04 to 3.0e-04", "0.8 to 1.9"] in [
        [cell.replace("\u202f", " ") for cell in row] for row in page.rows
    ]


def test_the_table_has_controls_and_every_combination(page):
    rows = [row for row in page.rows if len(row) == 19]
    assert rows[0][:8] == ["method", "unit", "epsilon", "cells", "ε", "δ", "nDCG@10", "AUC"]
    assert [row[0] for row in rows[1:6]] == [
        "labels only, no teacher", "server alone", "each merchant alone", "all data pooled", "FedAvg, no teacher",
    ]  # fmt: skip
    assert rows[1][8] == "−0.0500 ± 0.0000"
    assert rows[2][6:8] == ["0.9010 ± 0.0050", "0.9110 ± 0.0050"]
    (row,) = [row for row in rows if row[:3] == ["fedmd", "example", "8"]]
    shown = [cell.replace("\u202f", " ") for cell in row[3:]]
    assert shown == [
        "3 of 3", "8", "3.0e-04", "0.9143 ± 0.0050", "0.9243 ± 0.0050", "+0.0133 ± 0.0000",
        "−0.0267 ± 0.0000", "–", "0.514", "95.2 %", "19 %", "0.580", "0.40",
        "250 kB", "500 kB", "50 s",
    ]  # fmt: skip
    assert [row[2] for row in rows[6:]] == ["1", "8", "∞"] * 3


def test_figures_words_and_how_to_repeat_are_there(page):
    words = page.words
    ids = {value for name, value in page.attributes if name == "id"}
    assert set(FIGURES) <= ids
    assert all(GLOSSARY[word] in words for word in WORDS)
    assert COMMAND in words
    assert 'key = "privacy.epsilon"' in words
    assert "fed-distill 0.1.0, torch 2.0" in words
    assert "cells were made by different versions" not in words


def test_cells_made_by_different_versions_are_told(write, finished):
    path = finished.places.run(finished.cells[0].fingerprint) / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    summary["versions"]["torch"] = "3.0"
    path.write_text(json.dumps(summary), encoding="utf-8")
    assert "cells were made by different versions" in Page(write().report.read_text(encoding="utf-8")).words


def test_what_failed_or_is_missing_is_told_with_its_reason(write, finished):
    failed, missing = finished.cells[1], finished.cells[2]
    for cell in (failed, missing):
        (finished.places.run(cell.fingerprint) / "summary.json").unlink()
    finished.places.failure(failed.fingerprint).write_text("merchant <b> has no label\n", encoding="utf-8")
    found = write()
    words = Page(found.report.read_text(encoding="utf-8")).words
    assert not found.complete
    assert "1 of 30 cells failed, and 1 of 30 cells have not been run." in words
    assert f"{failed.title}: merchant <b> has no label" in words
    assert f"{missing.title}: not run" in words


def test_an_attack_that_failed_is_told_and_leaves_the_study_incomplete(tables, write_cells, tmp_path):
    axis = [{"key": "federation.rounds", "values": [1]}]
    audit = {"seeds": 1, "shadows": 4, "canaries": 20}
    study = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1, "audit": audit})
    cells, places = expand(study), Places(tmp_path / "attacked")
    write_cells(cells, places)
    places.failure(cells[1].fingerprint).write_text("too few examples\n", encoding="utf-8")
    found = write_findings(study, cells, places, COMMAND)
    words = Page(found.report.read_text(encoding="utf-8")).words
    assert not found.complete
    assert f"{cells[1].title}: finished, but the attack on it failed: too few examples" in words
    assert "the cells of the first seed, with 4 shadow students and 20 canaries" in words


def test_a_study_of_which_nothing_has_run_has_a_page(study, tmp_path):
    cells = expand(study)
    found = write_findings(study, cells, Places(tmp_path / "none"), "x")
    words = Page(found.report.read_text(encoding="utf-8")).words
    assert "No cell of this study has finished yet" in words
    assert "No finished cell promises anything" in words
    assert not list((tmp_path / "none").glob("figures/*"))


def test_a_study_without_privacy_has_bytes_and_a_table_only(tables, write_cells, tmp_path):
    axis = [{"key": "federation.rounds", "values": [1, 2]}]
    study = Study.parse({**tables, "axis": axis, "exclude": [], "seeds": 1})
    cells, places = expand(study), Places(tmp_path / "rounds")
    write_cells(cells, places)
    found = write_findings(study, cells, places, "x")
    page = Page(found.report.read_text(encoding="utf-8"))
    assert [path.stem for path in (tmp_path / "rounds" / "figures").glob("*.png")] == ["bytes"]
    assert "One training seed: how much of a difference another one would change cannot be told" in page.words
    assert list(found.table[0][:4]) == ["rounds", "cells", "nDCG@10", "AUC"]


def test_the_table_is_markdown_too(whole):
    lines = markdown(whole.found.table, axes=3).splitlines()
    assert lines[0].startswith("| method | unit | epsilon | cells |")
    assert lines[1].startswith("| --- | --- | --- | ---: |")
    assert len(lines) == 2 + 5 + 9
    assert markdown([["a|b", "c"], ["1", "2"]], axes=1) == "| a\\|b | c |\n| --- | ---: |\n| 1 | 2 |\n"


def test_the_same_cells_give_the_same_page(whole):
    first = whole.found.report.read_bytes()
    again = write_findings(whole.study, whole.cells, whole.places, COMMAND)
    assert again.report.read_bytes() == first
