"""Same product or not: pairs made of offers, and pairs in a user's table."""

from pathlib import Path

import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.errors import DataError


def test_offers_match_if_their_product_is_the_same(pricerunner_file: Path) -> None:
    options = {"path": str(pricerunner_file)}
    base = {"dataset": "pricerunner", "min_rows": 10, "proxy_size": 50, "options": options}
    data = load(DataConfig.model_validate({**base, "task": "matching"}))
    assert data.task.classes == ("different", "same")
    for table in (data.public, data.test):
        for label, title, same in zip(table.texts, table.pairs or (), table.labels.tolist(), strict=True):
            assert title.startswith(f"{label.lower()} ") == bool(same)
    shares = [float(merchant.train.labels.mean()) for merchant in data.merchants.values()]
    assert all(0.2 < share < 0.5 for share in shares)  # of three pairs of an offer one is of its product
    assert data.ranking_test is None


def table(tmp_path: Path, labels: tuple[str, str]) -> DataConfig:
    """Five shops of 60 pairs; a pair is of one product where both titles have the same number."""
    rows = [
        f"title {row},offer {row + row % 2} by s{row % 5},{labels[row % 2 == 0]},s{row % 5},{row // 5}"
        for row in range(300)
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["one,other,same,shop,product", *rows]) + "\n", encoding="utf-8")
    columns = {"text": "one", "pair": "other", "label": "same", "merchant": "shop", "group": "product"}
    return DataConfig.model_validate(
        {
            "dataset": "table",
            "task": "matching",
            "min_rows": 10,
            "proxy_size": 20,
            "options": {"path": str(path), "columns": columns},
        }
    )


@pytest.mark.parametrize("labels", [("different", "same"), ("0", "1"), ("Different", "SAME")])
def test_pairs_of_a_table_are_read_with_either_kind_of_label(labels: tuple[str, str], tmp_path: Path) -> None:
    data = load(table(tmp_path, labels))
    assert data.account["cleaning"]["rows_kept"] == 300
    for one, other, same in zip(data.test.texts, data.test.pairs or (), data.test.labels.tolist(), strict=True):
        assert (one.split()[1] == other.split()[1]) == bool(same)
    tested = {int(text.split()[1]) // 5 for text in data.test.texts}
    trained = {int(text.split()[1]) // 5 for one in data.merchants.values() for text in one.train.texts}
    assert not tested & trained


def test_labels_that_are_neither_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label in column 'same' is a class of matching; they are 'match', 'no'"):
        load(table(tmp_path, ("no", "match")))
