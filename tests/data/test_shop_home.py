"""Customers at home at one merchant: nothing of the days that are predicted decides where that is."""

from collections import Counter
from datetime import date, timedelta
from pathlib import Path

from fed_distill.config import DataConfig
from fed_distill.data.shop.dataset import Shop

HEADERS = {
    "transactions": "customer,merchant,basket,product,time",
    "products": "product,title",
    "campaigns": "customer,campaign,start,end,treated",
}


def day(number: int) -> str:
    return (date(2024, 1, 1) + timedelta(days=number)).isoformat()


def read(folder: Path, task: str, visits: list[tuple[str, str, int]], campaigns: list[str]):
    """Read a shop with a basket of tea for each visit: customer, store and day."""
    tables = {
        "transactions": [f"{who},{store},b{at},tea,{day(when)}" for at, (who, store, when) in enumerate(visits)],
        "products": ["tea,green tea"],
        "campaigns": campaigns,
    }
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([HEADERS[name], *rows]) + "\n", encoding="utf-8")
    config = DataConfig(dataset="shop", task=task, valid_share=0.1, test_share=0.2, options={"path": str(folder)})
    return Shop(path=folder, home_only=True).read(config)


def test_purchases_in_a_campaigns_days_do_not_decide_the_home_of_its_customers(tmp_path: Path) -> None:
    """A treated customer buys at another store than before; the example is at the earlier one, and has no purchase."""
    before = [("ann", "north", 1), ("ann", "north", 2), ("ann", "north", 3)]
    before += [("ann", "south", 4), ("ann", "south", 5), ("ann", "south", 6), ("ann", "north", 7)]
    before += [("bob", "south", at) for at in range(1, 6)]
    within = [("ann", "south", 20), ("ann", "south", 21), ("ann", "south", 22)]
    after = [("bob", "south", at) for at in range(40, 60)]
    campaigns = [f"ann,tea,{day(20)},{day(22)},yes", f"bob,tea,{day(20)},{day(22)},no"]
    found = read(tmp_path / "shop", "marketing-effect", before + within + after, campaigns)
    assert dict(zip(found.group_names, (found.names[owner] for owner in found.owners), strict=True)) == {
        0: "north",
        1: "south",
    }
    assert [found.task.classes[label] for label in found.labels] == ["treated_not_bought", "control_not_bought"]


def test_a_later_campaigns_customer_is_at_home_where_the_first_example_was(tmp_path: Path) -> None:
    visits = [("ann", "north", at) for at in range(1, 4)] + [("ann", "south", at) for at in range(20, 30)]
    visits += [("bob", "south", at) for at in range(1, 60)]
    campaigns = [
        f"{who},{name},{day(start)},{day(start + 2)},{treated}"
        for name, start in (("too early", 2), ("first", 10), ("second", 40))
        for who, treated in (("ann", "yes"), ("bob", "no"))
    ]
    found = read(tmp_path / "shop", "marketing-effect", visits, campaigns)
    rows = zip(found.groups.tolist(), found.pairs, found.owners.tolist(), strict=True)
    assert sorted((found.group_names[group], name, found.names[owner]) for group, name, owner in rows) == [
        (0, "first", "north"),
        (0, "second", "north"),
        (1, "first", "south"),
        (1, "second", "south"),
    ]


def test_purchases_after_training_do_not_decide_a_home(tmp_path: Path) -> None:
    """Late customers of a single basket are no examples, so that training ends long before most baskets are sold."""
    visits = [(f"c{who}", "north", at) for who in range(5) for at in range(28)]
    visits += [(f"c{who}", "south", at) for who in range(5) for at in range(28, 40) for _ in range(3)]
    visits += [(f"once{at}", "south", 30 + at % 16) for at in range(400)]
    found = read(tmp_path / "shop", "next-basket", visits, [])
    early: dict[str, Counter[str]] = {}
    for who, store, at in visits:
        if day(at) < str(found.end)[:10]:
            early.setdefault(who, Counter())[store] += 1
    homes = {who: stores.most_common(1)[0][0] for who, stores in early.items()}
    assert homes == {f"c{who}": "north" for who in range(5)}
    assert {found.names[owner] for owner in found.owners} == {"north"}
