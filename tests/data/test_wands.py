from pathlib import Path
from typing import Any

import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.wands import GRADED
from fed_distill.errors import ConfigError, DataError

DEPARTMENTS = ("Furniture", "Kitchen & Tabletop")
HEADERS = {
    "query.csv": "query_id\tquery\tquery_class",
    "product.csv": "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features"
    "\trating_count\taverage_rating\treview_count",
    "label.csv": "id\tquery_id\tproduct_id\tlabel",
}
LABELS = ("Exact", "Partial", "Irrelevant")


def lines() -> dict[str, list[str]]:
    """30 queries; 60 products of six classes, the first three in one department. Product p has grade p % 3 for all
    queries, every query has a judgement of half the products."""
    products = [
        f'{product}\t{product % 3} thing " no {product}\tClass {product % 6}|Other\t'
        f"{DEPARTMENTS[product % 6 // 3]} / Class {product % 6}\tgood , deep\tcolor:red|size : 5\t15.0\t4.5\t15.0"
        for product in range(60)
    ]
    products[59] = "59\tclassless thing\t\t\t\t\t\t\t"
    queries = [f"{query}\tquery {query}\tChairs" for query in range(30)]
    judged = [(query, product) for query in range(30) for product in range(60) if (query + product) % 2]
    labels = [f"{number}\t{query}\t{product}\t{LABELS[product % 3]}" for number, (query, product) in enumerate(judged)]
    return {"query.csv": queries, "product.csv": products, "label.csv": labels}


def write(folder: Path, tables: dict[str, list[str]], headers: dict[str, str] = HEADERS) -> Path:
    for name, rows in tables.items():
        (folder / name).write_text("\n".join([headers[name], *rows]) + "\n", encoding="utf-8")
    return folder


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate(
        {"dataset": "wands", "min_rows": 10, "proxy_size": 50, "options": {"path": str(folder)}, **changes}
    )


def test_judgements_are_joined_to_queries_and_products(tmp_path: Path) -> None:
    data = load(config(write(tmp_path, lines())))
    assert data.task == GRADED
    # Each query has 30 judgements; the product without a class is judged by the 15 even queries.
    assert data.account["cleaning"]["rows_read"] == 900
    assert data.account["cleaning"]["dropped"]["no merchant"] == 15
    assert data.account["merchants"]["all"] == 6
    for table in (data.public, data.test, *(merchant.train for merchant in data.merchants.values())):
        for query, title, label, merchant in zip(
            table.texts, table.pairs or (), table.labels.tolist(), table.merchants, strict=True
        ):
            product = int(title.split()[-1])
            assert (int(query.split()[1]) + product) % 2 == 1
            assert (label, merchant) == (product % 3, f"Class {product % 6}")
            assert title == f'{product % 3} thing " no {product}'


def test_queries_are_ranked_over_all_merchants(tmp_path: Path) -> None:
    data = load(config(write(tmp_path, lines())))
    assert data.ranking_test is not None
    assert data.account["ranking"]["test"]["queries"] == 6
    trained = {query for table in (data.public, *(m.train for m in data.merchants.values())) for query in table.texts}
    assert not trained & set(data.ranking_test.examples.texts)


def test_a_department_is_a_domain(tmp_path: Path) -> None:
    data = load(config(write(tmp_path, lines()), test_domain=DEPARTMENTS[1]))
    assert {int(title.split()[-1]) % 6 // 3 for title in data.test.pairs or ()} == {1}
    trained = [data.public, *(merchant.train for merchant in data.merchants.values())]
    assert {int(title.split()[-1]) % 6 // 3 for table in trained for title in table.pairs or ()} == {0}


def test_the_documented_name_of_the_hierarchy_is_read_too(tmp_path: Path) -> None:
    headers = {**HEADERS, "product.csv": HEADERS["product.csv"].replace("category hierarchy", "category_hierarchy")}
    (tmp_path / "documented").mkdir()
    documented = load(config(write(tmp_path / "documented", lines(), headers)))
    assert documented.test.texts == load(config(write(tmp_path, lines()))).test.texts


def test_missing_files_columns_and_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"query.csv does not exist: data.options.path is the folder"):
        load(config(tmp_path))
    write(tmp_path, lines(), {**HEADERS, "label.csv": "id\tquery_id\tproduct_id\tgrade"})
    with pytest.raises(DataError, match=r"label.csv has no column 'label'; it has: id, query_id, product_id, grade"):
        load(config(tmp_path))
    write(tmp_path, {**lines(), "query.csv": []})
    with pytest.raises(DataError, match=r"query.csv has no rows"):
        load(config(tmp_path))


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'matching'.*: relevance"):
        load(config(tmp_path, task="matching"))
