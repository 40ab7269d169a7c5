"""The account of the data has words that a reader of ``data describe`` knows."""

import re

from fed_distill.data.describe import render as described
from fed_distill.reporting.account_words import WORDS, in_words
from fed_distill.reporting.report import render

PROXY = {"texts": 4000, "in_server_rows": 0.125, "merchant_words": 900, "unknown_to_server": 0.25, "covered": 0.0625}


def test_keys_are_words_and_shares_are_per_cent():
    found = in_words({"client_rows": {"covered": 7}, "proxy": PROXY, "task": "sentiment"})
    assert found == {
        "training rows of clients": {"covered": 7},  # a merchant's name stays as it is
        "proxy set": {
            "distinct texts": 4000,
            "of these, in the server's labelled examples": "12.5\u202f%",
            "word types of the clients": 900,
            "of these, not in the server's labelled examples": "25.0\u202f%",
            "of those that are not, in the proxy set": "6.2\u202f%",
        },
        "task": "sentiment",
    }


def test_the_words_are_those_of_data_describe():
    three = {"train": 1, "valid": 1, "test": 1}
    account = {
        "dataset": "table",
        "task": "sentiment",
        "cleaning": {"rows_read": 9, "dropped": {}, "rows_kept": 9, "masked": {}, "unlabeled_merchants": ["a"]},
        "merchants": {"all": 3, "public": 1, "too_small": 1, "clients": 1, "cold": 1, "single_class": ["b"]},
        "limited_to": {"merchants": 1},
        "groups": three,
        "rows": {"public": three, "clients": three},
        "examples": {"public": 1},
        "classes": {"public": {"positive": 1, "negative": 0}},
        "proxy": PROXY,
        "ranking": {},
    }
    text = re.sub(r"\s+", " ", described(account)).lower()
    for key, words in WORDS.items():
        if key.startswith(("merchants", "cleaning", "limited_to")) or key in ("proxy", "proxy.texts"):
            assert words in text, key


def test_a_report_has_no_raw_key(summary):
    summary["data"] = {"client_rows": {"a": 12}, "proxy": PROXY}
    page = render(summary, [], "", "runs/x")
    assert "training rows of clients" in page and "client rows" not in page
    for key in ("in server rows", "unknown to server", "<dt>covered</dt>"):
        assert key not in page
