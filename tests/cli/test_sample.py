"""The sample tables are what the other commands read, the same each time, and replace nothing."""

import csv

import pytest

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.sample import write_sample
from fed_distill.errors import DataError


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_four_tables_of_twelve_shops(tmp_path):
    written = write_sample(tmp_path)
    grades, reviews, products, catalogue = (rows_of(path) for path in written)
    assert [path.name for path in written] == ["grades.csv", "reviews.csv", "products.csv", "catalogue.csv"]
    assert list(written.values()) == [len(grades), len(reviews), len(products), len(catalogue)]
    assert list(grades[0]) == ["query", "title", "grade", "shop"]
    assert {row["grade"] for row in grades} == {"exact", "substitute", "complement", "irrelevant"}
    assert list(reviews[0]) == ["review", "sentiment", "shop"]
    assert {row["sentiment"] for row in reviews} == {"positive", "negative"}
    assert len({row["shop"] for row in grades}) == len({row["shop"] for row in reviews}) == 12
    assert {row["title"] for row in products} == {row["title"] for row in grades}
    assert len({row["id"] for row in products}) == len(products)
    for role in ("query", "title"):
        texts = [row[role] for row in catalogue if row[role]]
        assert texts == sorted({row[role] for row in grades})
    assert all(text.isascii() for row in (*grades, *reviews) for text in row.values())


def test_the_same_files_are_written_each_time(tmp_path):
    for first, second in zip(write_sample(tmp_path / "a"), write_sample(tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_a_file_that_exists_is_kept_and_nothing_is_written(tmp_path):
    (tmp_path / "products.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"products\.csv exists: name another folder with --to"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["products.csv"]
    assert (tmp_path / "products.csv").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["grades", "reviews"])
def test_init_understands_them_without_a_doubt(entered, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, out, errors = entered("data", "sample")
    assert code == 0, errors
    assert "begin with: fed-distill init grades.csv" in out
    code, out, errors = entered("init", f"{name}.csv")
    assert code == 0, errors
    assert "not certain" not in out
    assert "note: the proxy set repeats the server's labelled rows" in out
    text = (tmp_path / f"{name}.toml").read_text(encoding="utf-8")
    assert "# Not certain" not in text and "# Notes:\n# - " in text
    assert len(load(Experiment.read(f"{name}.toml").data).merchants) >= 4
