"""Data frames of any library are read as the same rows in a file are."""

import stat

import pandas as pd
import pyarrow as pa
import pytest

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.frames import FOLDER, dataset_name, with_table, write
from fed_distill.errors import ConfigError, DataError

GRADES = ("exact", "substitute", "complement", "irrelevant")
ROWS = pd.DataFrame(
    [
        {
            "query": f"query {query}",
            "title": f"candidate {one} of {query} at {shop}",
            "grade": GRADES[one],
            "shop": shop,
        }
        for shop in ("north", "south", "east", "west")
        for query in range(30)
        for one in range(4)
    ]
)
COLUMNS = {"text": "query", "pair": "title", "label": "grade", "merchant": "shop"}


class OnlyArrow:
    """What polars and others offer: Arrow's C stream and nothing else."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def experiment(**options):
    data = {"dataset": "table", "min_rows": 20, "proxy_size": 30, "options": {"columns": COLUMNS, **options}}
    return Experiment.parse({"data": data})


def views():
    """The rows as polars exports them: texts as views of a buffer."""
    return OnlyArrow(pa.table({name: pa.array(ROWS[name].to_list(), pa.string_view()) for name in ROWS}))


FRAMES = {
    "pandas": lambda: ROWS,
    "pandas with an index": lambda: ROWS.set_index("shop", drop=False).rename_axis("key"),
    "pandas with categories": lambda: ROWS.astype({"grade": "category", "shop": "category"}),
    "pandas in two pieces": lambda: OnlyArrow(pa.concat_tables([pa.table(ROWS[:100]), pa.table(ROWS[100:])])),
    "Arrow": lambda: pa.Table.from_pandas(ROWS, preserve_index=False),
    "views": views,
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_gives_the_same_data_as_a_file(kind, tmp_path):
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    reference = load(experiment(path=str(tmp_path / "rows.csv")).data)
    data = load(with_table(experiment(), FRAMES[kind](), tmp_path).data)
    assert data.account["cleaning"]["rows_kept"] == len(ROWS) == 480
    assert (data.test.texts, data.test.pairs) == (reference.test.texts, reference.test.pairs)
    assert data.test.labels.tolist() == reference.test.labels.tolist()
    assert data.merchants.keys() == reference.merchants.keys()
    assert data.proxy.pairs == reference.proxy.pairs


def test_equal_frames_share_a_file_and_others_do_not(tmp_path):
    first = write(ROWS, tmp_path)
    assert write(pa.Table.from_pandas(ROWS.copy(), preserve_index=False), tmp_path) == first
    other = write(ROWS.replace({"query 3": "query three"}), tmp_path)
    assert other != first
    assert sorted((tmp_path / FOLDER).iterdir()) == sorted([first, other]), "nothing unfinished is left"
    assert stat.S_IMODE(first.stat().st_mode) == 0o600, "the table may be private"


def test_problems_of_a_frame_are_those_of_a_file(tmp_path):
    with pytest.raises(DataError, match=r"has no column 'shop'; it has: query, title, grade"):
        load(with_table(experiment(), ROWS.drop(columns="shop"), tmp_path).data)
    with pytest.raises(DataError, match="has no rows"):
        load(with_table(experiment(), ROWS[:0], tmp_path).data)
    with pytest.raises(DataError, match="the data frame has 2 columns 'shop': rename all but one"):
        load(with_table(experiment(), pa.table([pa.array(["a"])] * 2, names=["shop", "shop"]), tmp_path).data)
    nested = pd.DataFrame({**ROWS, "query": [["a", "b"]] * len(ROWS)})
    with pytest.raises(DataError, match="row 1: column 'query' holds a list, not text"):
        load(with_table(experiment(), nested, tmp_path).data)


def test_a_frame_that_cannot_be_stored_says_why(tmp_path):
    mixed = pd.DataFrame({"query": ["a", 1, {"b": 2}]}, dtype=object)
    with pytest.raises(DataError, match="the data frame cannot be stored: "):
        write(mixed, tmp_path)
    with pytest.raises(DataError, match="the data frame has no rows"):
        write(mixed.iloc[:0], tmp_path)


def test_what_is_no_frame_and_what_contradicts_one_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"not list: convert it, for example by pandas\.DataFrame"):
        write([{"query": "a"}], tmp_path)
    with pytest.raises(ConfigError, match=r"data\.dataset is 'marketplace': set it to 'table'"):
        with_table(Experiment.parse({}), ROWS, tmp_path)
    with pytest.raises(ConfigError, match=r"both a data frame and data\.options\.path"):
        with_table(experiment(path="rows.csv"), ROWS, tmp_path)


def test_a_table_is_called_as_its_file_and_a_frame_is_called_table(tmp_path):
    assert dataset_name(experiment(path="shops/avis.csv").data) == "avis.csv"
    assert dataset_name(experiment(path="hf://datasets/owner/name@main/avis.parquet").data) == "avis.parquet"
    frame = pd.DataFrame({"title": ["red shoe"]})
    assert dataset_name(with_table(experiment(), frame, tmp_path).data) == "table"
    assert dataset_name(Experiment().data) == Experiment().data.dataset
