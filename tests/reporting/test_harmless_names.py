"""A merchant may be called whatever can be printed, and no report, table or terminal takes its name for more."""

import json
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest
from rich.console import Console

from fed_distill import run
from fed_distill.reporting.report import write_report
from fed_distill.reporting.spreadsheets import to_csv
from fed_distill.reporting.tables import comparison_table, merchants_table
from fed_distill.reporting.terminal import show

EVIL = "=1<script>alert('x')</script><img src=x onerror=y>\"&{{ 7 * 7 }}[bold red]"


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory):
    """The shared run, all of whose merchants have another name, which their sites also give as a reason."""
    place = tmp_path_factory.mktemp("evil") / "run"
    shutil.copytree(tiny_run.result.folder, place)
    for file in ("summary.json", "metrics.jsonl"):
        text = (place / file).read_text(encoding="utf-8")
        for merchant in tiny_run.result.summary["by_merchant"]["counts"]:
            text = text.replace(json.dumps(merchant), json.dumps(f"{EVIL} {merchant}"))
        (place / file).write_text(text, encoding="utf-8")
    summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    for told in summary["answers"].values():
        told["reasons"] = [[f"merchant {EVIL}: ill", 1]]
        told["refused"] = 1
    (place / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return place


def test_the_report_shows_it_as_text(folder):
    page = write_report(folder).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    for markup in ("<script", "<img", 'onerror=y>"'):
        assert markup not in page


def test_the_terminal_shows_no_markup_of_it(folder, tmp_path):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    summary["federations"][EVIL] = summary["federations"][summary["federation"]]
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    console = Console(record=True, width=400, force_terminal=True)
    show(tmp_path, console)
    assert EVIL in console.export_text()


def test_tables_hold_no_formula(folder):
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for table in (comparison_table(summary), merchants_table(summary)):
        assert isinstance(table, pd.DataFrame)
        written = to_csv(table)
        assert "'=1<script>" in written
        assert not any(cell.lstrip('"').startswith("=") for line in written.splitlines() for cell in line.split(","))


class Handlers(HTMLParser):
    """Collects elements that would run something, or whose source is that of the class's name."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, name) for name, value in attributes if name.startswith("on") or value == "x"]


def test_a_class_is_text_everywhere_in_a_report(tiny_experiment, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    assert Handlers(f"<p>{name}</p>").found == [("img", "src"), ("img", "onerror")]
    rows = [
        {"title": f"{word} number {number} of {shop}", "class": label, "shop": shop}
        for shop in ("north", "south", "east", "west")
        for number in range(40)
        for word, label in (("kettle", name), ("shoe", "shoes"), ("phone", "phones"))
    ]
    options = {"columns": {"text": "title", "label": "class", "merchant": "shop"}}
    changes = {"data.dataset": "table", "data.task": "category", "data.options": options, "controls": ["server"]}
    result = run(tiny_experiment(tmp_path, changes), table=pd.DataFrame(rows))
    page = result.report.read_text(encoding="utf-8")
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 2, "the classes' metrics and the confusion matrix have it"
    assert Handlers(page).found == []
    assert name not in page
    assert name not in result._repr_html_()
