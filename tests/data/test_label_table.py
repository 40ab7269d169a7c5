"""Tables of somebody's labels: formats, probabilities and named classes, and rows that cannot be used."""

import json

import numpy as np
import pandas as pd
import pytest

from fed_distill.data.label_table import read_labels
from fed_distill.data.tasks import RELEVANCE, SENTIMENT
from fed_distill.errors import ConfigError, DataError

CLASSES = RELEVANCE.classes
ROWS = [
    {"text": "red shoe", "pair": "running shoe", "exact": 0.7, "substitute": 0.1, "complement": 0.1, "irrelevant": 0.1},
    {"text": "red shoe", "pair": "lamp", "exact": 0.0, "substitute": 0.0, "complement": 0.25, "irrelevant": 0.75},
    {"text": "007", "pair": "NA", "exact": 0.25, "substitute": 0.25, "complement": 0.25, "irrelevant": 0.25},
]
NAMED = [
    {"text": "red shoe", "pair": "running shoe", "answer": "Exact"},
    {"text": "red shoe", "pair": "lamp", "answer": "no"},
]


def write(rows, path):
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def read(path, task=RELEVANCE, columns=None, labels=None, confidence=None):
    return read_labels(path, task, columns or {}, labels or {}, confidence)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_probabilities_are_read_from_every_format(tmp_path, suffix):
    table = read(write(ROWS, tmp_path / f"labels{suffix}"))
    found = table.positions(["red shoe", "007", "red shoe", "red shoe"], ["lamp", "NA", "running shoe", "absent"])
    assert found.tolist() == [1, 2, 0, -1]
    expected = [[row[name] for name in CLASSES] for row in ROWS]
    np.testing.assert_allclose(table.probabilities, expected, atol=1e-12)


def test_columns_have_any_name_and_order(tmp_path):
    rows = [{f"p_{key}" if key in CLASSES else f"the {key}": value for key, value in row.items()} for row in ROWS]
    path = write([dict(reversed(row.items())) for row in rows], tmp_path / "labels.csv")
    table = read(path, columns={"text": "the text", "pair": "the pair"}, labels={f"p_{name}": name for name in CLASSES})
    np.testing.assert_allclose(table.probabilities[0], [0.7, 0.1, 0.1, 0.1], atol=1e-12)


def test_a_named_class_has_the_confidence_and_the_others_share_the_rest(tmp_path):
    path = write(NAMED, tmp_path / "labels.jsonl")
    options = {"columns": {"label": "answer"}, "labels": {"no": "irrelevant"}}
    sure = read(path, **options)
    np.testing.assert_array_equal(sure.probabilities, [[1, 0, 0, 0], [0, 0, 0, 1]])
    unsure = read(path, **options, confidence=0.7)
    np.testing.assert_allclose(unsure.probabilities, [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], atol=1e-12)


def test_texts_match_as_in_every_dataset(tmp_path):
    """White space is collapsed, and personal data is masked, in the file as in the data."""
    path = write([{"text": "  write   to ann@example.com", "label": "positive"}], tmp_path / "labels.csv")
    table = read(path, SENTIMENT, columns={"label": "label"})
    assert table.positions(["write to [email]", "write to bob@example.com", "write"], None).tolist() == [0, 0, -1]


def test_rows_that_nearly_sum_to_one_are_normalized_and_equal_duplicates_are_one(tmp_path):
    rounded = {**ROWS[0], "exact": 0.7004}
    table = read(write([rounded, rounded], tmp_path / "labels.csv"))
    np.testing.assert_allclose(table.probabilities[0], np.array([0.7004, 0.1, 0.1, 0.1]) / 1.0004, atol=1e-12)
    assert table.positions(["red shoe"], ["running shoe"]).tolist() == [0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"exact": 0.5}, r"labels.csv, row 3: the probabilities of exact, .*irrelevant sum to 0.8, not 1: normalize"),
        ({"exact": -0.1}, "row 3: column 'exact' holds '-0.1', not a probability"),
        ({"exact": 70}, "row 3: column 'exact' holds '70.0', not a probability"),
        ({"exact": "sure"}, "row 3: column 'exact' holds 'sure', not a probability"),
        ({"exact": None}, "row 3: column 'exact' holds '', not a probability"),
        ({"pair": " "}, "row 3: column 'pair' is empty: remove the row"),
        ({"pair": "lamp"}, "row 3 has the text of row 2 and another label: keep one row for each text or pair"),
    ],
)
def test_an_unusable_row_is_named(tmp_path, row, message):
    path = write([*ROWS[:1], ROWS[1], {**ROWS[0], "text": "red  shoe", **row}], tmp_path / "labels.csv")
    with pytest.raises(DataError, match=message):
        read(path)


def test_all_rows_that_do_not_sum_to_one_are_counted(tmp_path):
    wrong = [{**row, "exact": 0.05, "pair": str(place)} for place, row in enumerate(ROWS[:1] * 3)]
    with pytest.raises(DataError, match=r"row 2: the probabilities .*, as in 2 other rows, sum to 0.35"):
        read(write([ROWS[0], *wrong], tmp_path / "labels.csv"))


def test_an_unknown_class_is_named_with_its_row(tmp_path):
    path = write(NAMED, tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"row 2: 'no' is no class; relevance has: exact, .*Map it with teacher"):
        read(path, columns={"label": "answer"})
    disagreeing = write([NAMED[0], {**NAMED[0], "answer": "irrelevant"}], tmp_path / "two.csv")
    with pytest.raises(DataError, match="row 2 has the text of row 1 and another label"):
        read(disagreeing, columns={"label": "answer"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": {"title": "x"}}, ConfigError, "columns has no 'title'; task relevance has: text, pair, label"),
        ({"labels": {"no": "never"}}, ConfigError, "labels: 'no' maps to 'never'; relevance has: exact"),
        ({"labels": {"a": "exact", "b": "exact"}}, ConfigError, "'exact' has more than one column"),
        ({"labels": {"irrelevant": "exact"}}, ConfigError, "column 'irrelevant' has the probabilities of two classes"),
        ({"confidence": 0.9}, ConfigError, "confidence is for named classes.*: remove it, or name the column"),
        ({"columns": {"label": "exact"}, "confidence": 0.25}, ConfigError, r"confidence = 0.25 must be above 0.25, an"),
        ({"columns": {"label": "exact"}, "confidence": 1.1}, ConfigError, r"confidence = 1.1 must be .* at most 1"),
        ({"columns": {"text": "query"}}, DataError, "no column 'query'; it has: .*under teacher.options.columns"),
        ({"labels": {"good": "exact"}}, DataError, "has no column 'good'; it has: .*by class under teacher.options"),
    ],
)
def test_an_unusable_option_is_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        read(write(ROWS, tmp_path / "labels.csv"), **options)


def test_a_text_that_the_format_reads_as_something_else_is_named_by_its_row(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "2024-01-01", "pair": "lamp", "answer": "exact"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1: column 'text' holds a datetime, not text"):
        read(path, columns={"label": "answer"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent.csv does not exist"):
        read(tmp_path / "absent.csv")
