import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fed_distill.config import DataConfig, Experiment
from fed_distill.data import DATASETS, load
from fed_distill.data.dataset import test_to_train as shared_by_seeds
from fed_distill.errors import ConfigError

FINGERPRINT = """
import hashlib
from fed_distill.config import DataConfig
from fed_distill.data import load
for task in ("relevance", "recommend", "category"):
    data = load(DataConfig(task=task, proxy_size=50, options={"merchants": 6, "rows": 40}))
    print(hashlib.sha256(repr([data.public, data.public_valid, data.proxy, data.merchants, data.valid, data.test,
                               data.ranking_valid, data.ranking_test, data.account]).encode()).hexdigest())
"""

OWN_DATASET = '''
"""Reviews of shops, from a JSON file."""
import json
from dataclasses import dataclass
from pathlib import Path

from fed_distill.config import DataConfig
from fed_distill.data.dataset import Source
from fed_distill.data.labeled import LabeledRows
from fed_distill.data.tasks import category_task, label_reader


@dataclass(frozen=True)
class Reviews:
    """path: the file."""

    path: Path

    def read(self, config: DataConfig) -> Source:
        rows = json.loads(self.path.read_text())
        task = category_task(row["stars"] for row in rows)
        read_label = label_reader(task)
        return LabeledRows.build(
            task,
            texts=[row["text"] for row in rows],
            labels=[read_label(row["stars"]) for row in rows],
            merchants=[row["shop"] for row in rows],
            config=config,
        )
'''


def test_the_same_config_gives_the_same_bytes_whatever_the_hash_seed() -> None:
    prints = [
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert prints[0] == prints[1]
    assert len(set(prints[0].split())) == 3


def test_an_own_dataset_is_named_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(OWN_DATASET.strip().splitlines()) < 40
    (tmp_path / "my_reviews.py").write_text(OWN_DATASET)
    rows = [
        {"text": f"review {row} at {shop}", "stars": row % 5 + 1, "shop": shop}
        for shop in "abcdef"
        for row in range(60)
    ]
    (tmp_path / "reviews.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    data = load(
        DataConfig(dataset="my_reviews:Reviews", task="category", proxy_size=20, options={"path": "reviews.json"})
    )
    assert data.task.classes == ("1", "2", "3", "4", "5")
    assert data.account["cleaning"]["rows_kept"] == 360
    assert all(int(text.split()[1]) % 5 == label for text, label in zip(data.test.texts, data.test.labels, strict=True))


def test_all_registered_datasets_can_be_imported() -> None:
    assert sorted(DATASETS) == [
        "complete-journey",
        "esci",
        "marketplace",
        "pricerunner",
        "reviews-zh",
        "shop",
        "table",
        "wands",
    ]
    for name in DATASETS:
        assert callable(DATASETS.resolve(name).read)


def test_an_unknown_dataset_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset 'price-runner'; did you mean pricerunner"):
        load(DataConfig(dataset="price-runner"))


def test_a_proxy_of_size_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.proxy_size must be at least 1"):
        Experiment.parse({"data": {"proxy_size": 0}})


@pytest.mark.parametrize(
    ("data", "shared"),
    [
        ({"dataset": "marketplace"}, 0.0),
        ({"dataset": "marketplace", "options": {"world_seed": 0}}, 0.2 / 0.7),
        ({"dataset": "pricerunner", "valid_share": 0.2, "test_share": 0.3}, 0.3 / 0.5),
        ({"dataset": "complete-journey", "task": "next-basket"}, math.inf),
        ({"dataset": "complete-journey", "task": "profile"}, 0.2 / 0.7),
    ],
)
def test_what_data_seeds_share(data, shared):
    """Marketplaces of their own share nothing, splits of a table rows, and splits by time all test rows."""
    assert shared_by_seeds(DataConfig.model_validate(data)) == pytest.approx(shared)
