import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.errors import ConfigError, DataError

UCI_HEADER = (
    "Product ID",
    " Product Title",
    " Merchant ID",
    " Cluster ID",
    " Cluster Label",
    " Category ID",
    " Category Label ",
)
BRAND_OF = {"acme": 0, "bolt": 1, "cora": 2, "dune": 3}
real_file = Path(os.environ.get("FED_DISTILL_DATA", "")) / "pricerunner.csv.gz"
needs_real_file = pytest.mark.skipif(not real_file.is_file(), reason="FED_DISTILL_DATA has no pricerunner.csv.gz")


def config(path: Path, **changes: object) -> DataConfig:
    options = {"path": str(path)} | dict(changes.pop("options", {}))  # type: ignore[call-overload]  # a dict by the callers
    return DataConfig.model_validate(
        {"dataset": "pricerunner", "min_rows": 10, "proxy_size": 200, "options": options, **changes}
    )


def tables(data: FederatedData) -> list[Examples]:
    return [
        data.public,
        data.public_valid,
        data.test,
        data.valid,
        *(merchant.train for merchant in data.merchants.values()),
    ]


def grade(query: str, title: str) -> int:
    """The rule of the issue, from the texts: brand, category and model number are their first three words."""
    asked, offered = query.casefold().split()[:3], title.casefold().split()[:3]
    if asked == offered:
        return 0
    if asked[1] != offered[1]:
        return 3
    return 1 if asked[0] == offered[0] else 2


def test_grades_follow_from_cluster_brand_and_category(pricerunner_file: Path) -> None:
    data = load(config(pricerunner_file))
    for table in tables(data):
        expected = [grade(query, title) for query, title in zip(table.texts, table.pairs or (), strict=True)]
        assert table.labels.tolist() == expected
    assert set(data.public.labels.tolist()) == {0, 1, 2, 3}
    assert set(data.merchants) <= {f"merchant-{number}" for number in range(1, 11)}


def test_titles_are_paired_with_queries_of_their_own_merchant(offers: list[list[str]], pricerunner_file: Path) -> None:
    labels_of: dict[str, set[str]] = {}
    for _, _, vendor, _, label, _, _ in offers:
        labels_of.setdefault(f"merchant-{vendor}", set()).add(label)
    for name, merchant in load(config(pricerunner_file)).merchants.items():
        assert set(merchant.train.texts) <= labels_of[name]
        assert all(f"from shop {name.split('-')[1]} " in title for title in merchant.train.pairs or ())


def test_both_headers_and_gzip_give_the_same_data(
    offers: list[list[str]], write_offers: Callable[..., Path], pricerunner_file: Path
) -> None:
    ours = load(config(pricerunner_file))
    uci = load(config(write_offers(offers, UCI_HEADER, "pricerunner_aggregate.csv")))
    packed = pricerunner_file.with_name("packed.csv.gz")
    packed.write_bytes(gzip.compress(pricerunner_file.read_bytes()))
    for other in (uci, load(config(packed))):
        assert other.test.texts == ours.test.texts
        assert other.proxy.pairs == ours.proxy.pairs
        assert list(other.merchants) == list(ours.merchants)


def test_category_is_read_from_one_text(pricerunner_file: Path) -> None:
    data = load(config(pricerunner_file, task="category", proxy_size=20))
    assert data.task.classes == ("Fridges", "Phones", "TVs")
    assert data.public.pairs is None
    assert data.ranking_test is None
    names = {"fridge": 0, "phone": 1, "tv": 2}
    assert data.test.labels.tolist() == [names[title.split()[1]] for title in data.test.texts]


@pytest.mark.parametrize("task", ["category", "relevance"])
def test_a_merchants_language_can_be_its_domain(
    offers: list[list[str]], write_offers: Callable[..., Path], task: str
) -> None:
    """Two merchants write German in a tenth of their titles, a third has one such word."""
    for line in offers:
        if line[2] in ("4", "9") and int(line[0]) % 10 == 0:
            line[1] += " schwarz mit Einbauset"
    offers[0][1] += " silber"
    path = write_offers(offers)
    left_out = {"domain": "language"}
    data = load(
        config(path, task=task, options=left_out, test_domain="german", proxy_domains=["german"], proxy_size=50)
    )
    assert set(data.test.merchants) == {"merchant-4", "merchant-9"}
    assert set(data.proxy.merchants) == {"merchant-4", "merchant-9"}
    assert set(data.public.merchants) | set(data.merchants) == {f"merchant-{n}" for n in range(1, 11)} - {
        *data.test.merchants
    }
    with pytest.raises(ConfigError, match=r"it has: english, german"):
        load(config(path, task=task, options=left_out, test_domain="french"))


@needs_real_file
def test_seventeen_merchants_of_the_published_file_write_german() -> None:
    options = {"path": str(real_file), "domain": "language"}
    changes = {"test_domain": "german", "proxy_domains": ["german"], "proxy_size": 1000, "test_share": 0.5}
    data = load(
        DataConfig.model_validate({"dataset": "pricerunner", "task": "category", "options": options, **changes})
    )
    german = {*data.test.merchants, *data.proxy.merchants}
    assert {"merchant-298", "merchant-119", "merchant-300"} < german
    assert len(german) <= 17 and not german & set(data.merchants)


def test_recommend_is_not_offered(pricerunner_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"'recommend'.*: relevance, matching, category"):
        load(config(pricerunner_file, task="recommend"))


def test_the_folder_of_the_environment_is_searched(pricerunner_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_DISTILL_DATA", str(pricerunner_file.parent))
    from_environment = load(DataConfig(dataset="pricerunner", min_rows=10, proxy_size=200))
    assert from_environment.test.texts == load(config(pricerunner_file)).test.texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "has no rows"),
        (lambda lines: [lines[0], [*lines[1], "extra"]], "line 3: 8 fields where the header has 7"),
    ],
)
def test_a_broken_file_is_named(
    change: Callable[[list[list[str]]], list[list[str]]], message: str,
    offers: list[list[str]], write_offers: Callable[..., Path],
) -> None:  # fmt: skip
    path = write_offers(change(offers))
    with pytest.raises(DataError, match=rf"{path.name}.*{message}"):
        load(config(path))


def test_a_missing_column_is_named(offers: list[list[str]], write_offers: Callable[..., Path]) -> None:
    path = write_offers([line[:6] for line in offers], UCI_HEADER[:6])
    with pytest.raises(DataError, match=r"no column 'category_label'; it has: product_id, product_title, vendor_id"):
        load(config(path))


def test_an_empty_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty.csv has no column .*it has: nothing"):
        load(config(tmp_path / "empty.csv"))
    with pytest.raises(DataError, match=r"nowhere.csv does not exist"):
        load(config(tmp_path / "nowhere.csv"))


def test_an_unknown_option_names_those_there_are(pricerunner_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no option 'pair_per_row'.*pairs_per_row"):
        load(config(pricerunner_file, options={"pair_per_row": 3}))


@needs_real_file
def test_the_published_file_is_split_as_its_readme_counts() -> None:
    """35,311 offers, 306 merchants; 174 repeat a title of the same merchant and cluster label (counted with pandas)."""
    data = load(DataConfig(dataset="pricerunner", proxy_size=8000, options={"path": str(real_file)}))
    account = data.account
    assert account["cleaning"]["rows_read"] == 35_311
    assert account["cleaning"]["dropped"]["duplicate"] == 174
    assert account["cleaning"]["masked"] == {"email": 0, "phone": 0, "card": 0}
    assert account["merchants"]["all"] == 306
    assert account["merchants"]["public"] + account["merchants"]["clients"] == 306
    assert account["examples"]["proxy"] == 8000
    assert account["ranking"]["test"]["queries"] == 1462
    assert max(Counter(data.test.merchants).values()) <= 900
    train = {group for merchant in data.merchants.values() for group in merchant.train.groups.tolist()}
    assert not (train | set(data.public.groups.tolist())) & set(data.test.groups.tolist())
    assert data.ranking_test is not None
    assert not train & set(data.ranking_test.examples.groups.tolist())
    assert np.bincount(data.ranking_test.queries).max() <= 50
