"""What a spreadsheet opens holds no formula that a merchant or a site wrote, and all else as it was."""

import csv
import io

import pandas as pd
import pytest

from fed_distill.reporting.spreadsheets import as_cell, to_csv


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1",
        "=HYPERLINK(1)",
        "-",
        "-1;=1",
        "-1\n",
    ],
)
def test_a_text_that_begins_like_a_formula_gets_an_apostrophe(text):
    assert as_cell(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", [-1, -0.5, "-0.5", "+1e-3", "-inf", ".5", "a=b", "", "'=1", "Kühl & Söhne", None, True]
)
def test_numbers_and_other_texts_stay(value):
    assert as_cell(value) is value


def test_a_table_keeps_its_numbers_and_gaps():
    plain = pd.DataFrame(
        {"name": ["a", None, "c d"], "gain": [-1.5, float("nan"), 2e-9], "n": [1, 2, -3], "on": [True] * 3}
    )
    assert to_csv(plain) == plain.to_csv(index=False)
    evil = pd.DataFrame({"=name": ["=1,2", '"=1', "b"], "gain": [-1.5, 0.0, 1.0]})
    rows = list(csv.reader(io.StringIO(to_csv(evil))))
    assert rows == [["'=name", "gain"], ["'=1,2", "-1.5"], ['"=1', "0.0"], ["b", "1.0"]]
