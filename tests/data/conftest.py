"""A small file in PriceRunner's form."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fed_distill.data.pricerunner import HEADER

CATEGORIES = ("Phones", "Fridges", "TVs")
BRANDS = ("Acme", "Bolt", "Cora", "Dune")

WriteOffers = Callable[..., Path]


@pytest.fixture
def offers() -> list[list[str]]:
    """Lines of a file: 10 merchants with 40 offers of 72 products each."""
    lines = []
    for merchant in range(1, 11):
        for row in range(40):
            product = (row * 5 + merchant * 7) % 72
            category, brand, model = product % 3, product // 3 % 4, product // 12
            label = f"{BRANDS[brand]} {CATEGORIES[category][:-1]} {model}00"
            title = f"{label.lower()} from shop {merchant} variant {row}"
            number = str(len(lines) + 1)
            lines.append([number, title, str(merchant), str(product), label, str(category), CATEGORIES[category]])
    return lines


@pytest.fixture
def write_offers(tmp_path: Path) -> WriteOffers:
    """Write lines below a header."""

    def write(lines: list[list[str]], header: Sequence[str] = HEADER, name: str = "pricerunner.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(lines)
        return path

    return write


@pytest.fixture
def pricerunner_file(offers: list[list[str]], write_offers: WriteOffers) -> Path:
    return write_offers(offers)
