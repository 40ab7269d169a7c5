"""A catalogue's file: ids are unique, unusable titles are counted."""

import pandas as pd
import pytest

from fed_distill.errors import DataError
from fed_distill.serving.index import Product
from fed_distill.serving.products_file import read_products

ROWS = {"sku": ["007", "8", "9", "10"], "name": ["red  phone", "", "x" * 21, "call +49 170 1234567"]}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_every_format_gives_the_usable_products_and_counts_the_others(tmp_path, suffix):
    path, table = tmp_path / f"catalogue.{suffix}", pd.DataFrame(ROWS)
    if suffix == "parquet":
        table.to_parquet(path)
    elif suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    file = read_products(path, "sku", "name", 20)
    assert file.products == (Product("007", "red phone"), Product("10", "call [phone]"))
    assert file.skipped == {"empty": 1, "too long": 1}
    assert file.first_skipped[0].startswith("the title of row 2 is empty")
    assert file.first_skipped[1].startswith("the title of row 3 has 21 characters")


@pytest.mark.parametrize(
    ("ids", "titles", "message"),
    [
        (["1", "2", "1"], ["a", "b", "c"], "row 3: id '1' is that of row 1"),
        (["1", "", "3"], ["a", "b", "c"], "row 2: column 'id' is empty"),
        (["1", "2"], ["", "y" * 21], "no title in column 'title' can be used: the title of row 1 is empty"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, ids, titles, message):
    path = tmp_path / "catalogue.csv"
    pd.DataFrame({"id": ids, "title": titles}).to_csv(path, index=False)
    with pytest.raises(DataError, match=message):
        read_products(path, "id", "title", 20)


def test_a_missing_column_names_the_option(tmp_path):
    path = tmp_path / "catalogue.csv"
    path.write_text("id,name\n1,a\n")
    with pytest.raises(DataError, match=r"has no column 'title'; it has: id, name. Name the columns under --id-column"):
        read_products(path, "id", "title", 20)


def test_an_old_encoding_is_named(tmp_path):
    path = tmp_path / "catalogue.csv"
    path.write_bytes("id,title\n1,Kaffeemühle\n".encode("latin-1"))
    assert read_products(path, "id", "title", 20, "latin-1").products == (Product("1", "Kaffeemühle"),)
    with pytest.raises(
        DataError, match=r"line 2: the text is not in UTF-8: .* --encoding windows-1252 of init and index"
    ):
        read_products(path, "id", "title", 20)
    for name in ("klingon", "rot13", "a\0b"):
        with pytest.raises(DataError, match=r"encoding .* is unknown: use a name such as windows-1252"):
            read_products(path, "id", "title", 20, name)
