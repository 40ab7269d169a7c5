"""Stands in for a simulation: its score is a formula of what is searched, and it can fail in several ways."""

import json
import math
import os
import threading

from fed_distill.errors import DataError, TrainingError

LONG = 20.0
"""Seconds."""


def score(experiment):
    """Headline metric: best at a learning rate of 1e-2; the batch size hardly matters; seeds differ a little."""
    away = abs(math.log10(experiment.training.merchants.learning_rate) + 2.0)
    return 0.9 - 0.1 * away - 0.001 * (experiment.training.merchants.batch_size == 16) + 0.002 * (experiment.seed % 2)


def rounds(experiment, callbacks):
    for number in range(1, experiment.federation.rounds + 1):
        valid = {"ndcg@10": score(experiment) * number / experiment.federation.rounds}
        record = {"round": number, "rounds": experiment.federation.rounds, "seed": experiment.seed, "valid": valid}
        for callback in callbacks:
            callback.on_round(record)


def write(experiment):
    folder = experiment.runtime.folder / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    seeds = range(experiment.seed, experiment.seed + experiment.repeats)
    mean = sum(score(experiment.with_changes({"seed": seed})) for seed in seeds) / experiment.repeats
    title = experiment.federation.title
    summary = {
        "headline": "ndcg@10",
        "federation": title,
        "federations": {title: {"validation": {"ndcg@10": mean, "auc": 1.0 - mean}}},
        "student": {"ndcg@10": mean - 0.1, "auc": 0.5},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def run(experiment, callbacks=()):
    """A run that ends well."""
    rounds(experiment, callbacks)
    write(experiment)


def hang_if_bad(experiment, callbacks=()):
    """A run of a low score takes very long after its last round, once there is one to compare it with."""
    rounds(experiment, callbacks)
    finished = list(experiment.runtime.folder.glob("*/summary.json"))
    if score(experiment) < 0.8 and len(finished) > 1:  # the base is no trial
        threading.Event().wait(LONG)
    write(experiment)


def fail_if_bad(experiment, callbacks=()):
    """Large learning rates diverge, and small ones meet a fault of the data."""
    if experiment.training.merchants.learning_rate > 2e-2:
        raise TrainingError("the loss is nan")
    if experiment.training.merchants.learning_rate < 5e-3:
        raise DataError("shop-3 has no label")
    run(experiment, callbacks)


def broken(experiment, callbacks=()):
    """Not even the base can be run."""
    raise DataError("shop-1 has no rows")
