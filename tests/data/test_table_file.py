"""Files of tables whose names have a meaning to the library that reads them."""

from pathlib import Path

import pandas as pd
import pytest

from fed_distill.data.table_file import column_names, read_columns
from fed_distill.errors import DataError


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["sales [1]", "sales *", "sales ?", "sales\n1", "{sales}", "a::b", "%20"])
def test_the_file_that_is_named_is_read_and_no_other_that_a_pattern_matches(
    name: str, suffix: str, tmp_path: Path
) -> None:
    for other, value in ((f"sales 1{suffix}", "wrong"), (f"{name}{suffix}", "right")):
        frame, path = pd.DataFrame({"text": [value], "label": ["x"]}), tmp_path / other
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True)
    assert read_columns(path, ["text"]) == {"text": ["right"]}


def test_a_damaged_file_in_utf_16_is_an_error_of_its_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("text,label\nhello,1\n".encode("utf-16")[:-1])
    for read in (column_names, lambda damaged: read_columns(damaged, ["text"])):
        with pytest.raises(DataError, match=r"cannot read .*rows.csv: .*truncated data"):
            read(path)


def test_the_header_is_the_first_line_that_is_not_blank(tmp_path: Path) -> None:
    """Blank lines count as lines and not as rows, as in pandas."""
    path = tmp_path / "rows.csv"
    path.write_text("\n\ntext,label\n\nhello,1\n", encoding="utf-8")
    assert column_names(path) == ["text", "label"]
    assert read_columns(path, ["text", "label"]) == pd.read_csv(path, dtype=str).to_dict("list")
    for row, message in {
        "you,2,3": r"row 2 \(line 6\): 3 fields, and the header has 2",
        '\n\nyou,"2': "line 8: a quote is opened and never closed",
    }.items():
        path.write_text(f"\n\ntext,label\n\nhello,1\n{row}\n", encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read_columns(path, ["text"])
