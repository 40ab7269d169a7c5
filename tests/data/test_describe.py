import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.describe import _largest, describe, render
from fed_distill.data.examples import FederatedData


@pytest.fixture(scope="module")
def data() -> FederatedData:
    return load(DataConfig(proxy_size=100, options={"merchants": 6, "rows": 80}))


def test_the_account_is_json_and_renders_the_same_after_a_round_trip(data: FederatedData) -> None:
    assert render(json.loads(json.dumps(data.account))) == render(data.account)


def test_the_text_shows_what_was_counted(data: FederatedData) -> None:
    lines = [line.split() for line in render(data.account).splitlines()]
    cleaning, account = data.account["cleaning"], data.account
    assert ["rows", "read", f"{cleaning['rows_read']:,}"] in lines
    assert ["dropped:", "duplicate", f"{cleaning['dropped']['duplicate']:,}"] in lines
    assert ["clients", str(len(data.merchants))] in lines
    assert ["groups", "of", "rows", *(f"{account['groups'][part]:,}" for part in ("train", "valid", "test"))] in lines
    exact = (data.test.labels == 0).mean()
    assert any(line[:3] == ["test", f"{len(data.test):,}", f"{exact:.1%}"] for line in lines)
    assert any(line[:1] == ["test"] and "queries," in line for line in lines)


def test_the_merchants_whose_data_the_server_has_are_named(data: FederatedData) -> None:
    found = describe(data).splitlines()[-1]
    assert found.startswith("The server's merchants: ")
    assert set(found.partition(": ")[2].split(", ")) == set(data.public.merchants)
    assert _largest("b" * 3 + "a") == "b, a"
    names = [f"shop {number:02}" for number in range(12)]
    assert _largest(names) == ", ".join(names[:10]) + " and 2 more"


def test_the_picture_is_written_and_named(data: FederatedData, tmp_path: Path) -> None:
    assert "Figure" not in describe(data), "without a folder there is none"
    text = describe(data, tmp_path / "new")
    path = tmp_path / "new" / "merchants.png"
    assert text.splitlines()[-1].endswith(str(path))
    picture = imread(path)
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    assert (
        len({tuple(pixel) for pixel in picture[::7, ::7, :3].reshape(-1, 3).tolist()}) > 4
    )  # the four grades' colours


@pytest.fixture
def public_only() -> FederatedData:
    return load(DataConfig(clients="elsewhere", proxy_size=50, max_merchants=3, options={"merchants": 6, "rows": 80}))


def test_without_merchants_it_is_of_what_the_server_has(public_only: FederatedData, tmp_path: Path) -> None:
    text = describe(public_only, tmp_path / "new")
    assert 'data.clients = "elsewhere": the merchants are at remote sites' in text
    assert text.splitlines()[-1].startswith("No figure of the merchants")
    assert not (tmp_path / "new").exists()
    lines = [line.split() for line in text.splitlines()]
    assert ["public", "(the", "server's)", "6", "all", "local", "merchants"] in lines
    assert ["proxy", "50", "(unlabeled)"] in lines
    assert not any(row[:1] == ["train"] for row in lines)


def test_without_merchants_classes_are_in_the_order_of_the_public_ones(tmp_path: Path) -> None:
    config = DataConfig(task="category", clients="elsewhere", proxy_size=50, options={"merchants": 6, "rows": 80})
    account = load(config).account
    listed = render(account).splitlines()
    title = next(place for place, line in enumerate(listed) if line.startswith("Examples"))
    assert listed[title].split() == ["Examples", "public", "public_valid", "proxy", "valid", "test"]
    shown = [line.split()[0] for line in listed[title + 2 : title + 2 + len(account["classes"]["public"])]]
    counts = [account["classes"]["public"][name] for name in shown]
    assert counts == sorted(counts, reverse=True)


def test_many_classes_are_listed_one_a_line_and_drawn(tmp_path: Path) -> None:
    many = load(DataConfig(task="category", proxy_size=50, options={"merchants": 6, "rows": 80}))
    text = describe(many, tmp_path)
    assert (tmp_path / "merchants.png").stat().st_size > 10_000
    heads = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert set(many.task.classes) <= set(heads)
