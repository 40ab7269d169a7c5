"""Customers as privacy unit: what a customer changes is one group of examples at one merchant, and nothing else."""

import json
from collections import Counter
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.data.groups import merchants_of_a_group
from fed_distill.data.shop.dataset import Shop
from fed_distill.errors import ConfigError, DataError
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.privacy.ledger import Ledgers

CUSTOMERS = [f"c{number}" for number in range(10)]
DAYS = {"valid_from": "2024-02-05", "test_from": "2024-02-15"}
INDEPENDENT = {"independent_customers": True, **DAYS}


def write(folder: Path, without: str = "") -> Path:
    """Write a shop whose customers buy at three stores, most often at one, and a product that nobody else buys.

    The last two buy at a fourth store, which has so few rows that it is public whatever the others have.
    """
    draw = np.random.default_rng(0)
    lines = ["customer,merchant,basket,product,time"]
    for day in range(60):
        for number, customer in enumerate(CUSTOMERS):
            store = ("north", "south", "east")[(number + (draw.random() < 0.3)) % 3]
            bought, comes = draw.choice(12, size=2, replace=False), draw.random() < 0.8
            if number >= 8:
                store, comes = "kiosk", (day + number) % 9 == 0
            if comes and customer != without:
                when = (date(2024, 1, 1) + timedelta(days=day)).isoformat()
                lines += [f"{customer},{store},b{day}-{number},p{item},{when}" for item in bought]
                lines.append(f"{customer},{store},b{day}-{number},own{number},{when}")
    products = [f"p{item},thing number {item}" for item in range(12)]
    products += [f"own{number},only for customer {number}" for number in range(len(CUSTOMERS))]
    folder.mkdir()
    (folder / "transactions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "products.csv").write_text("\n".join(["product,title", *products]) + "\n", encoding="utf-8")
    return folder


def config(folder: Path, **options: object) -> DataConfig:
    given = {"path": str(folder), "max_pairs": 20, **options}
    return DataConfig(dataset="shop", task="next-basket", min_rows=13, public_share=0, proxy_size=60, options=given)


def rows(table: Examples, names: tuple[str, ...]) -> dict[tuple[str, str], list[tuple[str, str, int]]]:
    """The rows of each customer at each merchant, in order; customers by name, as their numbers differ."""
    found: dict[tuple[str, str], list[tuple[str, str, int]]] = {}
    pairs = zip(table.texts, table.pairs or (), table.labels.tolist(), strict=True)
    for group, merchant, row in zip(table.groups.tolist(), table.merchants, pairs, strict=True):
        found.setdefault((names[group], merchant), []).append(row)
    return found


def tables(data: FederatedData) -> dict[str, Examples]:
    """All tables that are trained, distilled or validated on."""
    of_merchants = {
        f"{part} of {merchant.name}": getattr(merchant, part)
        for merchant in data.merchants.values()
        for part in ("train", "valid", "test", "unlabeled")
    }
    common = {name: getattr(data, name) for name in ("public", "public_valid", "proxy", "valid", "test")}
    return {**common, **of_merchants}


def changed(tmp_path: Path, customer: str, **options: object) -> dict[str, set[tuple[str, str]]]:
    """The customers and merchants whose rows differ without ``customer``, by table, where any do."""
    both = []
    for without in ("", customer):
        folder = tmp_path / f"without {without or 'nobody'}"
        folder = folder if folder.exists() else write(folder, without)
        known = tuple(name for name in sorted(CUSTOMERS) if name != without)
        data = load(config(folder, **options))
        both.append({name: rows(table, known) for name, table in tables(data).items()})
    assert both[0].keys() == both[1].keys(), "the same merchants take part"
    found = {
        name: {key for key in table.keys() | both[1][name].keys() if table.get(key) != both[1][name].get(key)}
        for name, table in both[0].items()
    }
    return {name: keys for name, keys in found.items() if keys}


@pytest.mark.parametrize("customer", CUSTOMERS[:8])
def test_a_customer_changes_one_group_of_one_merchant_only(tmp_path: Path, customer: str) -> None:
    """Every table is compared with and without the customer, who alone buys one of the products."""
    found = changed(tmp_path, customer, **INDEPENDENT)
    keys = set.union(*found.values())
    assert len(keys) == 1, found
    ((who, merchant),) = keys
    assert who == customer
    assert f"train of {merchant}" in found
    assert not found.keys() & {"public", "public_valid", "proxy"}


def test_a_customer_of_a_public_merchant_changes_the_servers_tables_only(tmp_path: Path) -> None:
    assert set(changed(tmp_path, "c8", **INDEPENDENT)) <= {"public", "public_valid", "proxy"}


@pytest.mark.parametrize("options", [{"home_only": True, **DAYS}, {"home_only": True}, {}])
def test_otherwise_a_customer_changes_examples_of_others(tmp_path: Path, options: dict[str, object]) -> None:
    """What the attack finds without the option, so that it can find something."""
    found = changed(tmp_path, CUSTOMERS[0], **options)
    assert len({who for keys in found.values() for who, _ in keys}) > 1


def test_a_part_has_at_most_so_many_pairs_of_a_customer_and_products_of_the_whole_list(tmp_path: Path) -> None:
    data = load(config(write(tmp_path / "shop"), **INDEPENDENT))
    train = next(iter(data.merchants.values())).train
    assert max(Counter(train.groups.tolist()).values()) == 20
    assert set(train.pairs or ()) & {f"only for customer {number}" for number in range(10)}
    assert len(set(train.pairs or ())) > 15
    assert data.independent_users
    assert merchants_of_a_group(data, "group") == 1


def test_a_group_can_be_at_several_merchants_otherwise(tmp_path: Path) -> None:
    data = load(config(write(tmp_path / "shop")))
    assert not data.independent_users
    merchants = {name: set(one.train.groups.tolist()) for name, one in data.merchants.items()}
    assert merchants_of_a_group(data, "group") == max(
        sum(customer in groups for groups in merchants.values()) for customer in range(len(CUSTOMERS))
    )
    assert merchants_of_a_group(data, "group") == 2
    assert merchants_of_a_group(data, "pair") == len(merchants)


WRONG = {
    "independent_customers needs valid_from too": {"independent_customers": True},
    "valid_from needs test_from too": {"valid_from": "2024-02-05"},
    "valid_from = 2024-02-05 and test_from = 2024-02-05 must be in this order": {**DAYS, "test_from": "2024-02-05"},
    "must be in this order and within the days": {**DAYS, "test_from": "2025-02-05"},
}


@pytest.mark.parametrize("message", WRONG)
def test_days_that_cannot_be_are_refused(tmp_path: Path, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        load(config(write(tmp_path / "shop"), **WRONG[message]))


def test_other_tasks_do_not_have_independent_customers(tmp_path: Path) -> None:
    settings = config(write(tmp_path / "shop"), **INDEPENDENT).model_copy(update={"task": "profile"})
    with pytest.raises(DataError, match="customers"):  # read before the task's source is made
        load(settings)
    tables = Shop(path=tmp_path / "shop", independent_customers=True)
    with pytest.raises(ConfigError, match="independent_customers is for next-basket, not for profile: remove it"):
        tables.source(None, settings)


PRIVATE = {
    "privacy.unit": "group",
    "privacy.group": "user",
    "privacy.epsilon": 8.0,
    "privacy.batch_size": 4,
    "controls": ["server"],
    "federation.method": "fedavg",
    "federation.options": {},
}


def changes(folder: Path, **options: object) -> dict[str, object]:
    settings = config(folder, **options).model_dump(exclude_defaults=True)
    return {**{f"data.{name}": value for name, value in settings.items()}, "data.max_examples": None, **PRIVATE}


def test_one_epsilon_holds_for_a_user_in_a_run(tmp_path: Path, tiny_experiment, simulate) -> None:
    folder = write(tmp_path / "shop")
    result, _ = simulate(tiny_experiment(tmp_path, changes(folder, **INDEPENDENT)))
    summary = json.loads((result / "summary.json").read_text(encoding="utf-8"))["privacy"]
    assert (summary["unit"], summary["group"]) == ("group", "all examples of a user, who is at one merchant")
    assert summary["protects"] == "everything of any one user, whose examples are all at one merchant"
    assert summary["merchants_of_a_group"] == 1
    of_arms = [Ledgers(at) for at in (result / "checkpoint" / "ledgers" / "seed-0").iterdir() if at.is_dir()]
    spent = {name: ledgers.of(name).epsilon("group") for ledgers in of_arms for name in ledgers.merchants()}
    assert spent.keys() == load(config(folder, **INDEPENDENT)).merchants.keys()
    assert all(0.0 < epsilon <= 8.0 for epsilon in spent.values())
    assert max(spent.values()) == pytest.approx(summary["epsilon"])
    for name in ("report.html", "student/README.md"):
        text = " ".join((result / name).read_text(encoding="utf-8").split())
        assert "everything of any one user, whose examples are all at one merchant" in text, name
        assert "basic composition" not in text, name


def test_the_report_says_that_groups_at_several_merchants_have_several_budgets(
    tmp_path: Path, tiny_experiment, simulate
) -> None:
    result, _ = simulate(tiny_experiment(tmp_path, {**changes(write(tmp_path / "shop")), "privacy.group": "group"}))
    for name in ("report.html", "student/README.md"):
        text = " ".join((result / name).read_text(encoding="utf-8").split())
        assert "one group is at up to 2 merchants: for such a group the bound is the sum of 2 epsilons" in text, name


def test_a_dataset_that_wrongly_declares_its_users_is_found(tmp_path: Path, tiny_experiment) -> None:
    folder = write(tmp_path / "shop")
    data = replace(load(config(folder)), independent_users=True)
    experiment = tiny_experiment(tmp_path, changes(folder))
    with pytest.raises(ConfigError, match="has one user at 2 merchants, although it declares independent users"):
        mechanism_of(experiment).check_data(experiment, data)


REFUSED = {
    "a user may be at several merchants or change examples of others": {"data.options": {"home_only": True, **DAYS}},
    "a site cannot see who is at another": {"data.clients": "elsewhere"},
    "does not allow data.client_labels": {"data.client_labels": 0.5},
    "does not allow data.max_examples": {"data.max_examples": 50},
    "does not allow data.clicks": {"data.clicks": {"sessions": 5}},
    "does not allow data.proxy_from": {"data.proxy_from": "catalogue"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_promise_to_users_that_would_not_hold_is_refused(
    tmp_path: Path, tiny_experiment, simulate, message: str
) -> None:
    given = changes(write(tmp_path / "shop"), **INDEPENDENT)
    other = dict(REFUSED[message])
    if "data.options" in other:
        other["data.options"] = {"path": str(tmp_path / "shop"), **other["data.options"]}
    with pytest.raises(ConfigError, match=message):
        simulate(tiny_experiment(tmp_path, {**given, **other}))
