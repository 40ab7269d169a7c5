"""From a catalogue to an index, as a user enters it."""

import csv
import re

import pytest

from fed_distill import load_exported, load_student
from fed_distill.errors import DataError
from fed_distill.serving.index_files import load_index


@pytest.fixture
def catalogue(tmp_path, tiny_run):
    """A file of 30 products with titles that the student's data could have, one without a title and one too long."""
    path = tmp_path / "catalogue.csv"
    longest = load_student(tiny_run.result.folder).max_characters
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sku", "name"])
        rows.writerows([number, f"bravik {number} toaster"] for number in range(30))
        rows.writerows([[30, ""], [31, "x" * (longest + 1)]])
    return path


@pytest.mark.parametrize("engine", ["exact", "usearch"])
def test_a_catalogue_becomes_an_index_that_is_searched(entered, catalogue, tiny_run, tmp_path, engine):
    options = ["--id-column", "sku", "--title-column", "name", "--engine", engine]
    folder = tmp_path / "index"
    code, out, err = entered("index", catalogue, "--student", tiny_run.result.folder, "--to", folder, *options)
    assert code == 0, err
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert re.search(rf"^30 products, [\d,]+ a second, {size:,} bytes in ", out)
    assert "skipped titles: 1 empty, 1 too long; first: the title of row 31 is empty" in out
    assert ("recall@10 of usearch against exact vectors: 1.000 (30 titles)" in out) == (engine == "usearch")
    assert "recall@10 of 100 candidates against scoring every product: 1.000 (30 titles)" in out

    student = load_student(tiny_run.result.folder)
    index = load_index(folder, student, student.digest)
    titles = [f"bravik {number} toaster" for number in range(30)]
    best = student.rank("bravik 7 toaster", titles)
    assert index.search("bravik 7 toaster", 1)[0].score == pytest.approx(best.scores.max(), abs=1e-6)


def test_an_unusable_folder_is_an_error_before_anything_is_embedded(entered, catalogue, tiny_run, tmp_path):
    code, _, err = entered("index", catalogue, "--student", tiny_run.result.folder, "--to", tmp_path)
    assert code == 2
    assert "has other files than an index (catalogue.csv)" in err
    code, _, err = entered("index", catalogue, "--student", tiny_run.result.folder, "--to", catalogue)
    assert code == 2
    assert "is a file: choose a new folder" in err


def test_a_repeated_id_is_an_error_that_names_the_rows(entered, catalogue, tiny_run, tmp_path):
    with catalogue.open("a") as file:
        file.write("7,again\n")
    options = ["--id-column", "sku", "--title-column", "name"]
    code, _, err = entered(
        "index", catalogue, "--student", tiny_run.result.folder, "--to", tmp_path / "index", *options
    )
    assert code == 2
    assert "row 33: id '7' is that of row 8" in err
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--id-column", "", "--title-column", ""], "--id-column is empty"),
        (["--id-column", "sku", "--title-column", ""], "--title-column is empty"),
        (["--threads", "100000000"], "1<=x<=256"),
    ],
)
def test_empty_columns_and_threads_without_bound_are_errors(entered, catalogue, tiny_run, tmp_path, options, problem):
    folder = tmp_path / "index"
    code, _, err = entered("index", catalogue, "--student", tiny_run.result.folder, "--to", folder, *options)
    assert code == 2
    assert problem in err
    assert not folder.exists()


@pytest.mark.parametrize(("title", "recall"), [("toaster", "1.000 (1 titles)"), ("...", "recall: not measured")])
def test_titles_that_no_search_finds_are_counted(entered, tiny_run, tmp_path, title, recall):
    path = tmp_path / "catalogue.csv"
    path.write_text(f"id,title\n1,!!!\n2,???\n3,{title}\n")
    code, out, err = entered("index", path, "--student", tiny_run.result.folder, "--to", tmp_path / "index")
    assert code == 0, err
    assert f"which no search finds: {2 + (title == '...')}" in out
    assert out.startswith("3 products")
    assert recall in out


def test_a_variant_of_an_export_has_an_index_of_its_own(entered, catalogue, tiny_run, tmp_path):
    export, options = tmp_path / "export", ["--id-column", "sku", "--title-column", "name"]
    assert entered("export", tiny_run.result.folder, "--to", export, "--no-quality")[0] == 0
    options += ["--to", tmp_path / "i"]
    code, _, err = entered("index", catalogue, "--student", export, "--variant", "int4", *options)
    assert code == 0, err
    student = load_exported(export, "int4")
    assert load_index(tmp_path / "i", student, student.digest).search("bravik 7 toaster", 1)
    with pytest.raises(DataError, match="of another student"):
        load_index(tmp_path / "i", student, load_exported(export, "int8").digest)
    code, _, err = entered("index", catalogue, "--student", tiny_run.result.folder, "--variant", "int4", "--to", export)
    assert code == 2
