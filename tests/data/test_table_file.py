"""Files of tables whose names have a meaning to the library that reads them."""

from pathlib import Path

import pandas as pd
import pytest

from fed_distill.data.table_file import read_columns


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
