from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.esci import EXAMPLES, PRODUCTS
from fed_distill.data.examples import FederatedData
from fed_distill.errors import ConfigError, DataError

BRANDS = ("Acme", "Bolt", "Cora", "Dune", "Etna")
LETTERS = "ESCI"
WORDS = ("exact", "substitute", "complement", "irrelevant")


def examples() -> pd.DataFrame:
    """The published columns: 40 queries in English and 40 in Spanish, 20 products each; every fourth query is easy.
    The product with number n has grade n % 4 and is of brand n % 5; ids are the same in both locales."""
    lines = [
        {
            "query": f"{locale} query {query}", "query_id": query, "product_id": f"B{query:03d}{product:02d}",
            "product_locale": locale, "esci_label": LETTERS[product % 4],
            "small_version": int(query % 4 != 0), "large_version": 1, "split": "train" if query % 3 else "test",
        }
        for locale in ("us", "es") for query in range(40) for product in range(20)
    ]  # fmt: skip
    return pd.DataFrame([{"example_id": number, **line} for number, line in enumerate(lines)])


def products() -> pd.DataFrame:
    lines = [
        {
            "product_id": f"B{query:03d}{product:02d}",
            "product_title": f"{locale} {product % 4} of {query} no {product}",
            "product_description": None, "product_bullet_point": "soft",
            "product_brand": None if (query, product) == (1, 3) else BRANDS[product % 5], "product_color": None,
            "product_locale": locale,
        }
        for locale in ("us", "es") for query in range(40) for product in range(20)
    ]  # fmt: skip
    return pd.DataFrame(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    examples().to_parquet(tmp_path / EXAMPLES)
    products().to_parquet(tmp_path / PRODUCTS)
    return tmp_path


def config(folder: Path, **changes: Any) -> DataConfig:
    options = {"path": str(folder), **changes.pop("options", {})}
    return DataConfig.model_validate(
        {"dataset": "esci", "min_rows": 10, "proxy_size": 50, "options": options, **changes}
    )


def everything(data: FederatedData) -> list[tuple[str, str, int, str]]:
    tables = [data.public, data.public_valid]
    tables += [
        table for merchant in data.merchants.values() for table in (merchant.train, merchant.valid, merchant.test)
    ]
    return [
        row
        for table in tables
        for row in zip(table.texts, table.pairs or (), table.labels.tolist(), table.merchants, strict=True)
    ]


def test_judgements_are_joined_to_titles_and_brands_of_their_locale(folder: Path) -> None:
    data = load(config(folder, options={"version": "large"}))
    assert data.task.classes == WORDS
    # 40 queries x 20 products of the locale, but for one without a brand.
    assert data.account["cleaning"]["rows_read"] == 800
    assert data.account["cleaning"]["dropped"]["no merchant"] == 1
    for query, title, label, brand in everything(data):
        locale, grade, _, number, _, product = title.split()
        assert query == f"us query {number}"
        assert (locale, int(grade), brand) == ("us", label, BRANDS[int(product) % 5])


def test_the_small_version_leaves_out_easy_queries(folder: Path) -> None:
    asked = {int(query.split()[2]) for query, *_ in everything(load(config(folder)))}
    assert asked <= {query for query in range(40) if query % 4}
    assert load(config(folder)).account["cleaning"]["rows_read"] == 30 * 20


def test_queries_are_never_on_two_sides_and_are_ranked(folder: Path) -> None:
    data = load(config(folder))
    trained = {query for table in (data.public, *(m.train for m in data.merchants.values())) for query in table.texts}
    assert data.ranking_test is not None
    assert not trained & set(data.test.texts)
    assert not trained & set(data.ranking_test.examples.texts)
    # A fifth of 30 queries, a quarter of their candidates exact, which are 20 each, but for one without a brand.
    told = data.account["ranking"]["test"]
    assert (told["queries"], told["best_grade_per_query"]) == (6, 5.0)
    assert told["candidates_per_query"] in (20.0, round(119 / 6, 2))


def test_a_few_queries_are_drawn_whole_and_by_the_seed(folder: Path) -> None:
    few = {"options": {"queries": 20}, "proxy_size": 20}
    assert load(config(folder, **few)).account["cleaning"]["rows_read"] == 400
    same, other = load(config(folder, **few)), load(config(folder, **few, seed=1))
    assert load(config(folder, **few)).test.texts == same.test.texts
    assert {query for query, *_ in everything(same)} != {query for query, *_ in everything(other)}


def test_a_locale_is_a_domain_that_can_be_tested_alone(folder: Path) -> None:
    both = {"options": {"locales": ["us", "es"]}}
    data = load(config(folder, **both, test_domain="es"))
    assert {query.split()[0] for query in data.public.texts} == {"us"}
    assert {query.split()[0] for query in data.test.texts} == {"es"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / PRODUCTS).unlink(), rf"{PRODUCTS} does not exist: data.options.path .*Git LFS"),
        (lambda folder: (folder / EXAMPLES).write_text("version https://git-lfs"), rf"cannot read .*{EXAMPLES}"),
        (
            lambda folder: products().drop(columns="product_brand").to_parquet(folder / PRODUCTS),
            rf"cannot read .*{PRODUCTS}.*product_brand",
        ),
        (
            lambda folder: products().query("product_locale == 'es'").to_parquet(folder / PRODUCTS),
            r"no rows of data.options.locales = us",
        ),
        (
            lambda folder: examples().astype({"small_version": str}).to_parquet(folder / EXAMPLES),
            rf"cannot read .*{EXAMPLES}",
        ),
        (
            lambda folder: products().assign(product_locale=1).to_parquet(folder / PRODUCTS),
            rf"cannot read .*{PRODUCTS}",
        ),
    ],
)
def test_broken_files_are_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        load(config(folder))


def test_ids_that_one_file_has_as_numbers_are_found(folder: Path) -> None:
    plain = load(config(folder))
    for table, name in ((examples(), EXAMPLES), (products(), PRODUCTS)):
        numbers = table.assign(product_id=table["product_id"].str[1:].astype(int))
        numbers = numbers.astype({"product_id": str}) if name == EXAMPLES else numbers
        numbers.to_parquet(folder / name)
    assert everything(load(config(folder))) == everything(plain)


def test_other_tasks_and_locales_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'esci'.*: relevance"):
        load(config(folder, task="category"))
    with pytest.raises(ConfigError, match=r"option locales must be 'us', 'es' or 'jp', not 'de'"):
        load(config(folder, options={"locales": ["de"]}))
    with pytest.raises(ConfigError, match=r"at least one locale"):
        load(config(folder, options={"locales": []}))
