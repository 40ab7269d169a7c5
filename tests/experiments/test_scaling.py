"""What a merchant costs, what many would take, and a page that says nothing else than the file of measurements."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import scaling
from experiments.benchmarks.constants import PROXY, NameCost, name_cost, student_cost
from experiments.benchmarks.projection import duration, messages, volume
from experiments.benchmarks.scaling import Measured, written
from fed_distill.errors import DataError

ROOT = Path(__file__).parents[2]
MEASURED = ROOT / "experiments" / "benchmarks" / "scaling.json"
PAGE = ROOT / "docs" / "how-to" / "scaling.md"


@pytest.mark.parametrize(("asked", "chunk", "sites"), [(1, 16, 1), (100, 16, 1), (100, 16, 7), (95, 16, 40), (5, 9, 9)])
def test_messages_are_the_pairs_of_chunk_and_site_of_merchants_that_are_dealt_in_turn(asked, chunk, sites):
    pairs = {(merchant // chunk, merchant % sites) for merchant in range(asked)}
    assert messages(asked, chunk, sites) == len(pairs)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.50 B"), (999, "999 B"), (1_234, "1.23 kB"), (8_560_000, "8.56 MB"), (2.5e15, "2.50 PB")],
)
def test_bytes_have_three_digits(value, text):
    assert volume(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0055, "5.50 ms"), (59, "59.0 s"), (90, "1.50 min"), (7200, "2.00 h"), (864_000, "10.0 d")]
)
def test_seconds_get_the_unit_that_suits(value, text):
    assert duration(value) == text


def test_a_merchant_is_measured_as_what_it_sends_keeps_and_holds():
    cost = student_cost("two-tower", merchants=3, texts=8)
    labels = PROXY * 4 * 4  # float32 by class
    assert cost.student_bytes == 4 * (32_768 * 65 + (129 * 64 + 64) + (64 * 4 + 4))
    assert 0 <= cost.methods["fedmd"].uplink - labels < 500
    assert 0 <= cost.methods["fedavg-kd"].downlink - labels - cost.student_bytes < 2_000
    assert cost.methods["fedavg-kd"].uplink < cost.student_bytes / 10  # the rows of eight short pairs
    assert 0 <= cost.kept_bytes - 2 * cost.student_bytes < 4_000  # the newest two rounds
    assert min(cost.train_seconds, cost.test_seconds, cost.methods["fedavg-kd"].merge_seconds) > 0


def test_a_name_adds_its_letters_and_little_more():
    cost = name_cost(merchants=50)
    assert 16 < cost.roster < cost.request < 60
    assert 16 < cost.counts < 80


def test_a_run_adds_a_line_to_what_was_measured(tmp_path, capsys):
    file = tmp_path / "scaling.json"
    Measured(names=NameCost(1.0, 2.0, 3.0)).write(file)
    assert scaling.main(["--file", str(file), "run", "60"]) == 0
    (run,) = json.loads(file.read_text())["runs"]
    assert run["merchants"] == 50  # ten are public
    assert 0 < run["round_seconds"] < run["seconds"]
    assert run["summary_bytes"] > 50 * 50
    assert capsys.readouterr().out.splitlines()[2].startswith("| 50 | ")
    assert Measured.read(file).names == NameCost(1.0, 2.0, 3.0)


def test_the_page_says_what_the_file_of_measurements_says():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, Measured.read(MEASURED).tables()) == page


def test_a_table_is_put_after_its_marker_in_place_of_the_old_one():
    page = "a\n\n<!-- x -->\n| old |\n| rows |\n\nb\n\n<!-- y -->\n"
    once = written(page, {"x": "| new |", "y": "| more |"})
    assert once == "a\n\n<!-- x -->\n| new |\n\nb\n\n<!-- y -->\n| more |\n"
    assert written(once, {"x": "| new |", "y": "| more |"}) == once
    with pytest.raises(DataError, match="no marker <!-- z -->"):
        written(page, {"z": "| new |"})


def test_tables_of_what_was_not_measured_are_refused(tmp_path, capsys):
    assert scaling.main(["--file", str(tmp_path / "none.json"), "write", "--page", str(PAGE)]) == 2
    assert "call scaling.py constants" in capsys.readouterr().err
