import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.cleaning import unlabeled_rows
from fed_distill.data.describe import render
from fed_distill.data.table import Table
from fed_distill.errors import ConfigError, DataError

GRADES = ("exact", "substitute", "complement", "irrelevant")
COLUMNS = {"text": "search term", "pair": "product", "label": "grade", "merchant": "shop", "group": "term_id"}


def graded_rows() -> list[dict[str, Any]]:
    """Six shops (called 001 to 006), 30 queries with four candidates each at every shop."""
    return [
        {
            "search term": f"query {query}",
            "product": f"candidate {candidate} of {query} at {shop}",
            "grade": GRADES[candidate],
            "shop": f"{shop:03d}",
            "term_id": query,
        }
        for shop in range(1, 7)
        for query in range(30)
        for candidate in range(4)
    ]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def config(path: Path, columns: Mapping[str, str] = COLUMNS, **changes: Any) -> DataConfig:
    options = {"path": str(path), "columns": dict(columns)}
    return DataConfig.model_validate(
        {"dataset": "table", "min_rows": 20, "proxy_size": 30, "options": options, **changes}
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl", ".json"])
def test_every_format_gives_the_same_data(suffix: str, tmp_path: Path) -> None:
    data = load(config(write(graded_rows(), tmp_path / f"rows{suffix}")))
    assert data.account["cleaning"]["rows_kept"] == 720
    assert set(data.public.merchants) | set(data.merchants) == {f"{shop:03d}" for shop in range(1, 7)}
    for text, product, label in zip(data.test.texts, data.test.pairs or (), data.test.labels.tolist(), strict=True):
        assert product.startswith(f"candidate {label} of {text.split()[1]} ")
    reference = load(config(write(graded_rows(), tmp_path / "reference.csv")))
    assert data.test.texts == reference.test.texts
    assert data.proxy.pairs == reference.proxy.pairs


def test_groups_with_several_candidates_are_ranked(tmp_path: Path) -> None:
    data = load(config(write(graded_rows(), tmp_path / "rows.csv")))
    assert data.ranking_test is not None
    # A fifth of 30 queries, four candidates at each of six shops.
    assert data.account["ranking"]["test"] == {"queries": 6, "candidates_per_query": 24.0, "best_grade_per_query": 6.0}
    assert set(data.ranking_test.examples.groups.tolist()) == set(data.test.groups.tolist())


def test_unknown_labels_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = graded_rows()
    rows[0]["grade"], rows[1]["grade"] = "great", ""
    data = load(config(write(rows, tmp_path / "rows.csv")))
    assert data.account["cleaning"]["dropped"]["unknown label"] == 2
    assert unlabeled_rows(data.account["cleaning"]) == (
        "dropped 2 of 720 rows, whose labels are no class: 'great' (1), empty (1); to keep them, map the labels with "
        "data.options.labels"
    )
    assert data.account["cleaning"]["unknown_labels"] == {"great": 1, "": 1}
    assert re.search(r"dropped: unknown label +2 +great: 1, empty: 1", render(data.account))


def test_numbers_have_the_meaning_that_they_are_given(tmp_path: Path) -> None:
    numbers = {"exact": 3, "substitute": 2, "complement": 1, "irrelevant": 0}
    path = write([{**row, "grade": numbers[row["grade"]]} for row in graded_rows()], tmp_path / "rows.csv")
    options = {"path": str(path), "columns": COLUMNS, "labels": {str(value): name for name, value in numbers.items()}}
    data, named = load(config(path, options=options)), load(config(write(graded_rows(), tmp_path / "named.csv")))
    assert data.test.texts == named.test.texts
    assert data.test.labels.tolist() == named.test.labels.tolist()


def test_grades_that_are_numbers_are_not_guessed(tmp_path: Path) -> None:
    path = write([{**row, "grade": GRADES.index(row["grade"])} for row in graded_rows()], tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"no label in column 'grade' is a class of relevance.* with labels"):
        load(config(path))
    options = {"path": str(path), "columns": COLUMNS, "labels": {"3": "excellent"}}
    with pytest.raises(DataError, match=r"^data.options.labels: '3' of .* maps to 'excellent'; relevance has: exact"):
        load(config(path, options=options))


def test_texts_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    rows = graded_rows()
    for row in rows[:4]:
        row["search term"] = "NA"
    rows[5]["product"] = ""
    data = load(config(write(rows, tmp_path / "rows.csv")))
    assert data.account["cleaning"]["dropped"]["empty"] == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_missing_column_names_the_file_and_the_columns_there_are(suffix: str, tmp_path: Path) -> None:
    path = write(graded_rows(), tmp_path / f"rows{suffix}")
    with pytest.raises(
        DataError, match=rf"rows{suffix} has no column 'titel'; it has: search term, product, grade, shop, term_id"
    ):
        load(config(path, {**COLUMNS, "text": "titel"}))


def test_labels_of_another_task_are_shown(tmp_path: Path) -> None:
    rows = [{**row, "grade": "good"} for row in graded_rows()]
    with pytest.raises(
        DataError, match=r"no label in column 'grade' .* 'good', first in row 1; relevance has: exact, substitute"
    ):
        load(config(write(rows, tmp_path / "rows.csv")))


def test_a_text_that_is_none_names_its_row(tmp_path: Path) -> None:
    rows = [{**row, "product": [row["product"]]} for row in graded_rows()]
    with pytest.raises(DataError, match=r"rows.jsonl, row 1: column 'product' holds a list, not text"):
        load(config(write(rows, tmp_path / "rows.jsonl")))


def test_pairs_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task recommend requires two texts.*data.options.columns.pair"):
        load(config(tmp_path / "rows.csv", {"text": "a", "label": "b"}, task="recommend"))


def test_an_unknown_column_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'table': columns has no 'titel'; it has: text, label, pair, merchant"):
        load(config(tmp_path / "rows.csv", {"titel": "a"}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "", "rows.csv is empty"),
        ("rows.csv", "search term,product,grade,shop,term_id\n", "rows.csv has no rows"),
        (
            "rows.csv",
            'search term,product,grade,shop,term_id\n"a\n""b""",b,c,d,e\na,"two\nlines","c,d,e\nf,g,h,i,j\n',
            "rows.csv, line 5: a quote is opened and never closed: close it",
        ),
        (
            "rows.csv",
            'search term,product,grade,shop,"term_id\na,b,c,d,e',
            "line 1: a quote is opened and never closed",
        ),
        (
            "rows.csv",
            "search term,product,grade,shop,term_id\na,b,c,d,e\nf,g,h,i,j,k\n",
            r"rows.csv, row 2 \(line 3\): 6 fields, and the header has 5: quote texts that contain ','",
        ),
        # All rows too long: pandas would take the first column for an index, and shift all others.
        ("rows.csv", "search term,product,grade,shop,term_id\na,b,c,d,e,f\n", r"rows.csv, row 1 \(line 2\): 6 fields"),
        ("rows.csv", "product,product,search term,grade,shop,term_id\na,b,c,d,e,f\n", "has 2 columns 'product'"),
        ("rows.jsonl", "{not json\n", r"cannot read .*rows.jsonl"),
        ("rows.jsonl", '{"search term": "a"}\n[1, 2]\n', r"cannot read .*rows.jsonl"),
        ("rows.parquet", "no parquet", r"cannot read .*rows.parquet"),
        ("rows.xlsx", "x", r"rows.xlsx: unknown format"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(config(tmp_path / name))


def test_numbers_that_a_reader_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    """Two shops of more digits than a float has would be one."""
    rows = [{**row, "shop": 10**20 + int(row["shop"])} for row in graded_rows()]
    with pytest.raises(DataError, match=r"row 1: column 'shop' has a number near 1e\+20 whose last digits are lost"):
        load(config(write(rows, tmp_path / "rows.jsonl")))
    rows = [{**row, "shop": 2**53 + int(row["shop"])} for row in graded_rows()]
    assert len(load(config(write(rows, tmp_path / "rows.jsonl"), public_share=0.2)).merchants) == 5


@pytest.mark.parametrize("mark", ["index", "trailing comma"])
def test_a_csv_with_a_column_that_has_no_name_is_read(mark: str, tmp_path: Path) -> None:
    plain = load(config(write(graded_rows(), tmp_path / "rows.csv")))
    path = tmp_path / "more.csv"
    if mark == "index":
        pd.DataFrame(graded_rows()).to_csv(path)
    else:
        lines = (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()
        path.write_text("".join(f"{line},\n" for line in lines), encoding="utf-8")
    more = load(config(path))
    assert more.public.texts == plain.public.texts
    assert list(more.merchants) == list(plain.merchants)


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^data.options.path: .*rows.csv does not exist: correct the path"):
        load(config(tmp_path / "rows.csv"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as missing:
        load(config(Path("rows.csv")))
    told = f"data.options.path: rows.csv does not exist in {Path.cwd()}, where the command was started"
    assert str(missing.value).startswith(told)
    with pytest.raises(DataError, match=r"is not a file"):
        load(config(tmp_path))


def test_a_partitioner_makes_merchants_where_the_table_has_none(tmp_path: Path) -> None:
    path = write(graded_rows(), tmp_path / "rows.csv")
    without = {name: column for name, column in COLUMNS.items() if name != "merchant"}
    with pytest.raises(DataError, match=r"no merchant column"):
        load(config(path, without))
    data = load(config(path, without, partition="dirichlet", partitions=8, concentration=5.0))
    assert data.account["merchants"]["all"] == 8
    assert {name.split("-")[0] for name in data.merchants} == {"merchant"}


def test_integer_and_missing_categories_are_read(tmp_path: Path) -> None:
    rows = [
        {"text": f"item {row} of {shop}", "label": row % 3 + 5, "shop": shop} for shop in "abcd" for row in range(40)
    ]
    rows[0]["label"] = None
    path = write(rows, tmp_path / "rows.parquet")
    data = load(config(path, {"merchant": "shop"}, task="category", proxy_size=10))
    assert data.task.classes == ("5", "6", "7")
    assert (
        data.task.positive == "6"
        if sum(row["label"] == 6 for row in rows) > sum(row["label"] == 5 for row in rows)
        else "5"
    )
    assert data.account["cleaning"]["dropped"]["unknown label"] == 1
    assert all(int(text.split()[1]) % 3 == label for text, label in zip(data.test.texts, data.test.labels, strict=True))


PUBLIC = {"proxy_from": "catalogue", "proxy_size": 100_000}


def with_options(setting: DataConfig, **options: Any) -> DataConfig:
    return setting.model_copy(update={"options": {**setting.options, **options}})


def test_public_columns_give_the_texts_of_all_merchants_training_rows(tmp_path: Path) -> None:
    setting = with_options(
        config(write(graded_rows(), tmp_path / "rows.csv"), **PUBLIC), public_columns=["text", "pair"]
    )
    data = load(setting)
    trained = [data.public, *(merchant.train for merchant in data.merchants.values())]
    assert set(data.proxy.texts) == {text for part in trained for text in part.texts}
    assert set(data.proxy.pairs or ()) == {text for part in trained for text in part.pairs or ()}
    assert set(data.proxy.merchants) == {f"{shop:03d}" for shop in range(1, 7)}


@pytest.mark.parametrize("clients", ["here", "elsewhere"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_a_catalogue_file_is_the_proxy_set_s_only_source(suffix: str, clients: str, tmp_path: Path) -> None:
    own = write(graded_rows(), tmp_path / "rows.csv")
    test = load(config(own)).test
    lines = [{"asked": f"query {at}", "name": f" new   offer {at} "} for at in range(30)]
    lines += [{"asked": test.texts[0], "name": (test.pairs or ())[0]}, {"asked": "", "name": "only a title"}]
    catalogue = write(lines, tmp_path / f"catalogue{suffix}")
    options = {"catalogue": str(catalogue), "catalogue_columns": {"text": "asked", "pair": "name"}}
    data = load(with_options(config(own, clients=clients, **PUBLIC), **options))
    assert set(data.proxy.pairs or ()) == {f"new offer {at}" for at in range(30)} | {"only a title"}
    assert not set(data.proxy.texts) & {*data.test.texts, *data.valid.texts}
    assert set(data.proxy.texts) == set(data.public.texts) & {f"query {at}" for at in range(30)}
    assert set(data.proxy.merchants) == {""}
    assert data.proxy_truth is None
    assert not set(data.proxy.groups.tolist()) & set(data.test.groups.tolist())


def test_a_catalogue_of_single_texts(tmp_path: Path) -> None:
    rows = [{"title": f"{shop} {at}", "kind": "ab"[at % 2], "shop": str(shop)} for shop in range(4) for at in range(30)]
    catalogue = write([{"title": f"new {at % 7}"} for at in range(20)], tmp_path / "catalogue.csv")
    columns = {"text": "title", "label": "kind", "merchant": "shop"}
    setting = config(write(rows, tmp_path / "rows.csv"), columns, task="category", **PUBLIC)
    assert sorted(load(with_options(setting, catalogue=str(catalogue))).proxy.texts) == [f"new {at}" for at in range(7)]


def test_a_catalogue_file_leaves_out_cold_merchants_and_a_test_domain(tmp_path: Path) -> None:
    shared = [{"title": f"in all shops {at}", "kind": "ab"[at % 2]} for at in range(30)]
    rows = [
        {**row, "shop": str(shop), "land": "far" if at >= 55 else "near"}
        for shop in range(6)
        for at, row in enumerate([*shared, *({"title": f"{shop} {at}", "kind": "ab"[at % 2]} for at in range(30))])
    ]
    written = [row["title"] for row in rows] + [f"-{str(row['title']).replace(' ', ', ')}!" for row in rows]
    catalogue = write([{"title": title} for title in written], tmp_path / "catalogue.csv")
    columns = {"text": "title", "label": "kind", "merchant": "shop", "domain": "land"}
    changes = PUBLIC | {"cold_merchants": 0.2, "test_domain": "far"}
    setting = config(write(rows, tmp_path / "rows.csv"), columns, task="category", **changes)
    data = load(with_options(setting, catalogue=str(catalogue)))
    assert data.cold is not None
    cold = data.cold.names[0].lstrip("0")
    offered = set(data.proxy.texts)
    assert {f"in all shops {at}" for at in range(30)} & offered
    numbers = [[int(number) for number in re.findall(r"\d+", text)] for text in offered if "all" not in text]
    assert numbers and not [one for one in numbers if one[0] == int(cold)]
    assert not [one for one in numbers if one[1] >= 25]


def test_a_title_that_is_held_out_in_one_column_is_not_in_the_catalogue_by_the_other(tmp_path: Path) -> None:
    """Both texts of a matching pair are titles."""
    rows = [
        {"one": f"left {shop} {at}", "other": f"right {shop} {at}", "same": at % 2, "shop": str(shop)}
        for shop in range(4)
        for at in range(30)
    ]
    turned = [{"one": row["other"], "other": row["one"]} for row in rows]
    catalogue = write([*turned, {"one": "new left", "other": "new right"}], tmp_path / "catalogue.csv")
    columns = {"text": "one", "pair": "other", "label": "same", "merchant": "shop"}
    setting = config(write(rows, tmp_path / "rows.csv"), columns, task="matching", **PUBLIC)
    data = load(with_options(setting, catalogue=str(catalogue)))
    trained = [data.public, *(merchant.train for merchant in data.merchants.values())]
    known = {text for part in trained for text in (*part.texts, *(part.pairs or ()))}
    assert {*data.proxy.texts, *(data.proxy.pairs or ())} <= known | {"new left", "new right"}
    assert not known.isdisjoint(data.proxy.texts)


def test_histories_of_a_table_are_private(tmp_path: Path) -> None:
    rows = [
        {"history": f"seen {at} at {shop}", "offer": f"offer {at}", "click": at % 2, "shop": str(shop)}
        for shop in range(4)
        for at in range(30)
    ]
    columns = {"text": "history", "pair": "offer", "label": "click", "merchant": "shop"}
    setting = config(write(rows, tmp_path / "rows.csv"), columns, task="recommend", **{**PUBLIC, "proxy_size": 40})
    with pytest.raises(ConfigError, match=r"public_columns = \['pair'\], as histories are private"):
        load(with_options(setting, public_columns=["text", "pair"]))
    data = load(with_options(setting, public_columns=["pair"]))
    assert all(title.startswith("offer ") for text in data.proxy.texts for title in text.split(" ; "))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, r"neither is given: set data.options.public_columns = \['text', 'pair'\].*\.catalogue"),
        (
            {"public_columns": ["pair"]},
            ConfigError,
            r"but public_columns = \['pair'\]: set data.options.public_col",
        ),
        ({"catalogue": "missing.csv"}, DataError, r"data.options.catalogue: .*missing.csv does not exist"),
        (
            {"catalogue": "rows.csv", "public_columns": ["pair"]},
            ConfigError,
            "catalogue and public_columns both say which texts are public",
        ),
        ({"catalogue_columns": {"text": "a"}}, ConfigError, "catalogue_columns requires catalogue"),
        (
            {"catalogue": "rows.csv", "catalogue_columns": {"label": "a"}},
            ConfigError,
            "catalogue_columns has no 'label'; it has: text, pair",
        ),
        (
            {"catalogue": "rows.csv", "catalogue_columns": {"text": "absent"}},
            DataError,
            r"rows.csv has no column 'absent'.*Name the columns under data.options.catalogue_columns",
        ),
        (
            {"catalogue": "blank.csv"},
            DataError,
            r"blank.csv: column 'product' has no text of at most 512 characters",
        ),
    ],
)
def test_what_is_wrong_with_a_catalogue_is_named(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    setting = config(write(graded_rows(), tmp_path / "rows.csv"), **PUBLIC)
    write([{"search term": "query", "product": " "}], tmp_path / "blank.csv")
    if "catalogue" in options:
        options = {**options, "catalogue": str(tmp_path / options["catalogue"])}
    with pytest.raises(error, match=message):
        load(with_options(setting, **options))


def test_domains_and_a_catalogue_file_exclude_each_other(tmp_path: Path) -> None:
    own = write(graded_rows(), tmp_path / "rows.csv")
    setting = config(own, {**COLUMNS, "domain": "shop"}, proxy_domains=["001"], **PUBLIC)
    with pytest.raises(ConfigError, match=r"data.proxy_domains: a catalogue file has no domains"):
        load(with_options(setting, catalogue=str(own)))


def test_a_label_that_no_row_has_is_told(tmp_path, caplog):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"text {one},{'ab'[one % 2]}\n" for one in range(40)), encoding="utf-8")
    options = {"path": str(path), "labels": {"a": "positive", "b": "negative", "c ": "negative"}}
    config = DataConfig(dataset="table", task="sentiment", partition="dirichlet", options=options)
    Table(path=path, labels=options["labels"]).read(config)
    assert "no row has the label 'c ' of data.options.labels" in caplog.text
