"""A finished run as the runner would leave it, with numbers drawn from fixed seeds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fed_distill.config import Experiment
from fed_distill.config.privacy import table_of_unit
from fed_distill.data.examples import Task
from fed_distill.mechanisms.account import Spent, account
from fed_distill.mechanisms.lookup import mechanism
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.store import RunStore
from fed_distill.reporting.summary import summarize

TASK = Task("relevance", ("irrelevant", "complement", "substitute", "exact"), True, "exact", (0.0, 0.01, 0.1, 1.0))
QUALITY = {"server": 0.9545, "local": 0.9546, "pooled": 0.968, "fedavg": 0.957}
FEDERATIONS = {"fedavg-kd+fedsubavg": 0.9655, "fedavg-kd": 0.9585, "fedmd": 0.9562}
TEACHER = {
    "parameters": 22_713_988,
    "accuracy": 0.79,
    "macro_f1": 0.713,
    "auc": 0.983,
    "ndcg@10": 0.966,
    "mrr@10": 0.97,
}
SPEED = {"teacher_seconds_per_pair": 7.9e-3, "student_seconds_per_pair": 5.2e-5, "ratio": 151.9, "pairs": 256}
MERCHANTS = [f"Merchant {number:02d}" for number in range(1, 31)] + ['<b>"Tom & Söhne"</b>']
ACCOUNT = {
    "dataset": "pricerunner",
    "task": "relevance",
    "source": {"name": "PriceRunner", "license": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"},
    "cleaning": {
        "rows_read": 35_311,
        "rows_kept": 34_870,
        "dropped": {"empty": 12, "duplicate": 401, "too long": 28, "unknown label": 0, "no merchant": 0},
        "masked": {"email": 0, "phone": 3, "card": 0},
        "unlabeled_merchants": [],
    },
    "split": {"public_merchants": 215, "clients": 31, "public": 14_210, "train": 22_429, "valid": 3_120, "test": 6_402},
}


def metrics(quality, random):
    return {
        "accuracy": quality - 0.2 + random.normal(0, 0.004),
        "macro_f1": quality - 0.25 + random.normal(0, 0.006),
        "auc": quality + 0.004 + random.normal(0, 0.0008),
        "ndcg@10": quality + random.normal(0, 0.0006),
        "mrr@10": quality + 0.002,
    }


def outcome(name, kind, seed, quality):
    random = np.random.default_rng([seed, len(name)])
    owners = np.random.default_rng(7)
    level = {merchant: quality - 0.17 + owners.normal(0, 0.05) for merchant in MERCHANTS}
    federated = kind == "federation" or name == "fedavg"
    small = "subavg" in name
    return Outcome(
        name=name,
        kind=kind,
        seed=seed,
        metrics=metrics(quality, random),
        merchant_accuracy={merchant: min(0.99, mean + random.normal(0, 0.02)) for merchant, mean in level.items()},
        merchant_counts={merchant: 12 + 9 * index for index, merchant in enumerate(MERCHANTS)},
        before_adaptation=metrics(quality - 0.0008, random) if kind == "federation" else None,
        validation=metrics(quality - 0.002, random),
        adaptation=["fine-tuning: kept, nDCG@10 0.9641 to 0.9648", "distillation: undone, it fell to 0.9630"]
        if kind == "federation"
        else [],
        downlink_bytes=(8_420_112 if not small else 1_204_330) if federated and name != "fedmd" else 64_000 * federated,
        uplink_bytes=(8_420_112 if not small else 611_204) if federated and name != "fedmd" else 64_000 * federated,
        seconds=140.0 + seed,
        rounds=10 if federated else 0,
    )


def experiment(seeds):
    return Experiment.parse(
        {
            "name": "pricerunner",
            "repeats": seeds,
            "data": {"dataset": "pricerunner"},
            "federation": {"method": "fedavg-kd", "aggregator": "fedsubavg", "rounds": 10},
            "compare": [{"aggregator": "fedavg"}, {"method": "fedmd", "aggregator": "fedavg"}],
        }
    )


def outcomes(seeds):
    return [
        outcome(name, kind, seed, quality)
        for seed in range(seeds)
        for kind, group in (("control", QUALITY), ("federation", FEDERATIONS))
        for name, quality in group.items()
    ]


def summary_of(seeds):
    return summarize(
        experiment(seeds),
        TASK,
        TEACHER,
        student_parameters=2_105_604,
        outcomes=outcomes(seeds),
        merchants=len(MERCHANTS),
        seconds=2710.4,
        speed=SPEED,
        account=ACCOUNT,
    )


def private_summary_of(seeds, reproducible_noise=True, unit="example"):
    """The same run as if its federations had been private, with an account of the data as ``data.splits`` gives it."""
    config = table_of_unit(unit)(unit=unit, epsilon=4.0, report_scores=True)
    spent = Spent(len(MERCHANTS), 3.96, 1e-5, 0.8, 1.6, 0, 3.96, 4.21)
    promise = account(mechanism(unit), config, spent, (StudentUpdate,), reproducible_noise=reproducible_noise)
    private = [replace(one, privacy=promise if one.kind == "federation" else None) for one in outcomes(seeds)]
    tables = {"public": 14_210, "public_valid": 1_530, "proxy": 4_000, "train": 22_429, "valid": 3_120, "test": 6_402}
    parts = ("train", "valid", "test")
    counted = {
        "merchants": {"all": 250, "public": 215, "too_small": 190, "clients": 31, "single_class": ["Merchant 07"]},
        "client_rows": {merchant: 100 + index for index, merchant in enumerate(MERCHANTS)},
        "rows": {
            "public": dict(zip(parts, (15_003, 2_003, 4_003), strict=True)),
            "clients": dict(zip(parts, (20_123, 3_001, 6_001), strict=True)),
        },
        "groups": dict(zip(parts, (9_001, 1_201, 2_301), strict=True)),
        "examples": tables,
        "classes": {name: {"exact": count // 2, "substitute": count - count // 2} for name, count in tables.items()},
        "largest_group": {"group": 12, "text": 40, "pair": 9},
    }
    changed = experiment(seeds).with_changes({"privacy.unit": unit, "privacy.epsilon": 4.0})
    return summarize(
        changed,
        TASK,
        TEACHER,
        student_parameters=2_105_604,
        outcomes=private,
        merchants=len(MERCHANTS),
        seconds=2710.4,
        account={**ACCOUNT, **counted},
    )


def records(seeds):
    for seed in range(seeds):
        for name, quality in {"fedavg": QUALITY["fedavg"], **FEDERATIONS}.items():
            random = np.random.default_rng([seed, len(name), 1])
            for round in range(1, 11):
                reached = 0.9525 + (quality - 0.9545) * (1 - 0.7**round) + random.normal(0, 0.0004)
                yield {
                    "seed": seed,
                    "federation": name,
                    "round": round,
                    "rounds": 10,
                    "train_loss": 0.9 * 0.93**round,
                    "valid": metrics(reached, random),
                    "merchant_accuracy": {"mean": 0.78, "worst": 0.61},
                    "bytes": {"downlink": 260_000_000, "uplink": 19_000_000},
                    "merchants": len(MERCHANTS),
                    "rejected": 0,
                    "seconds": 12.5,
                }


def write_run(folder, seeds):
    with RunStore.create(folder, experiment(seeds)) as store:
        for record in records(seeds):
            store.append(record)
        store.write_summary(summary_of(seeds))
    return folder


@pytest.fixture
def sample():
    """What the sample run is made of."""
    return SimpleNamespace(
        task=TASK,
        teacher=TEACHER,
        account=ACCOUNT,
        speed=SPEED,
        experiment=experiment(3),
        outcomes=outcomes(3),
        federations=list(FEDERATIONS),
    )


@pytest.fixture
def summary():
    """Summary of a run of three seeds."""
    return summary_of(3)


@pytest.fixture
def private_summary():
    """Summary of a private run of three seeds, in a simulation."""
    return private_summary_of(3)


@pytest.fixture
def one_seed_summary():
    """Summary of a run of one seed."""
    return summary_of(1)


@pytest.fixture
def run_folder(tmp_path):
    """Folder of a finished run of three seeds."""
    return write_run(tmp_path / "pricerunner", 3)
