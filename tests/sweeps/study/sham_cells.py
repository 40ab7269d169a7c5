"""Stands in for a simulation: writes the summary that a run would have left, by formula, and can fail in many ways.

The quality falls with privacy and differs by method and seed, so that tests can compute by hand what a study must say.
"""

import json
import math
import os
import signal
import threading

from fed_distill.errors import DataError, TrainingError

STUDENT, SERVER, LOCAL, POOLED = 0.85, 0.90, 0.89, 0.97
METHODS = {"fedavg": 0.94, "fedavg-kd": 0.95, "fedmd": 0.92, "feddf": 0.93}
SEEDS = (0.001, -0.001, 0.003)
AUDIT = {"auc": 0.7, "epsilon_lower_bound": 0.4, "attacks": {"loss": {"tpr_at_1pct": 0.02}}}


def quality(experiment):
    """Headline metric: the method's without privacy, less the smaller ε is, and a little luck."""
    epsilon = experiment.promise.epsilon if experiment.privacy.protects else math.inf
    price = {"none": 0.0, "example": 0.06, "merchant": 0.09}[experiment.privacy.unit]
    return METHODS[experiment.federation.method] - price / (1 + epsilon) + SEEDS[experiment.seed % len(SEEDS)]


def metrics(score):
    return {"accuracy": score - 0.2, "macro_f1": score - 0.3, "auc": score + 0.01, "ndcg@10": score, "mrr@10": score}


def row(score, validation=None):
    return {**metrics(score), "merchant_accuracy": score - 0.1, "validation": validation}


def validation(rate, best):
    """Metrics on validation examples: nDCG@10 is 0.8 at the best learning rate, 0.1 less for each doubling."""
    return metrics(0.8 - 0.1 * abs(math.log2(rate / best)))


BEST_RATES = {"fedavg": 1.5e-3, "fedavg-kd": 3e-3, "fedmd": 6e-3, "feddf": 3e-3}
"""Best learning rates of merchants by method, and of controls below."""


def validations(experiment):
    """Metrics on validation examples of the federation (None) and of controls."""
    training, method = experiment.training, experiment.federation.method
    return {
        None: validation(training.merchants.learning_rate, BEST_RATES[method]),
        "server": validation(training.server.learning_rate, 6e-3),
        "pooled": validation(training.pooled.learning_rate, 2.5e-3),
    }


def summary(experiment):
    score, luck, privacy = quality(experiment), SEEDS[experiment.seed % len(SEEDS)], experiment.privacy
    controls = {"student": STUDENT + luck, "server": SERVER + luck, "local": LOCAL + luck, "pooled": POOLED + luck}
    promise = {
        "unit": privacy.unit,
        "epsilon": None,
        "delta": None,
        "audit": {"auc": None, "epsilon_lower_bound": None},
    }
    if privacy.unit != "none":
        promise |= {
            "epsilon": privacy.epsilon * 0.999,
            "delta": 1e-4 * (1 + experiment.seed),
            "accountant": privacy.accountant,
            "noise_multiplier": {"least": 0.8, "most": 1.9},
            "trusted": "nobody but the merchant",
            "reveals": [
                {"what": "how many examples", "how": "with noise; counted"},
                {"what": "its scores", "how": "exactly"},
            ],
            "audit": {**AUDIT, "auc": 0.5 + 0.01 * privacy.epsilon},
        }
    soft = experiment.federation.method == "fedmd"
    return {
        "headline": "ndcg@10",
        "merchants": 6,
        "rounds": experiment.federation.rounds,
        "seconds": 60.0,
        "federation": experiment.federation.method,
        "federations": {
            experiment.federation.method: {
                "rounds": experiment.federation.rounds,
                "seconds": 50.0,
                "validation": validations(experiment)[None],
            }
        },
        "student": {
            **row(score),
            "parameters": 1000,
            "worst_merchant": {"merchant": "shop-3", "accuracy": score - 0.4},
        },
        "controls": {name: row(controls[name], validations(experiment).get(name)) for name in experiment.controls},
        "retention": score / 0.96,
        "bytes": {
            "downlink_per_merchant_round": 50_000 if soft else 8_000_000,
            "uplink_per_merchant_round": 50_000 if soft else 1_000_000,
        },
        "privacy": promise,
        "data": {"dataset": "marketplace", "examples": {"train": 4440}},
        "versions": {"fed-distill": "0.1.0", "torch": "2.0"},
    }


def write(experiment):
    folder = experiment.runtime.folder / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {'resumed' if experiment.runtime.resume else 'new'}\n")
    (folder / "experiment.toml").write_text(experiment.to_toml(), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary(experiment)), encoding="utf-8")


def run(experiment, callbacks=()):
    """A run that ends well."""
    for callback in callbacks:
        callback.on_stage("seed 0", None)
        callback.on_round({"round": 1, "rounds": experiment.federation.rounds})
    write(experiment)


def run_if_imported(experiment, callbacks=()):
    """A run that fails unless torch was there before it, with the environment of the process that began the study."""
    import sys

    missing = [name for name in ("torch", "fed_distill.merchant.app") if name not in sys.modules]
    if missing or os.environ.get("OF_THE_STUDY") != "now" or os.environ["OMP_NUM_THREADS"] != "1":
        raise DataError(f"missing {missing}; {sorted(os.environ)}")
    run(experiment, callbacks)


def run_with_students(experiment, callbacks=()):
    """A run that ends well, and keeps what a merchant would have gone on from."""
    import torch

    from fed_distill.storage.merchant_store import STUDENTS, MerchantStore

    students = MerchantStore(experiment.runtime.folder / experiment.name / "checkpoint" / STUDENTS)
    students.save("fedmd", experiment.seed, "shop-1", 1, {"weight": torch.ones(3)})
    run(experiment, callbacks)


def attack(folder, callback, shadows, canaries):
    """An attack that finds nothing."""
    callback.on_stage("audit", None)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    asked = {"shadows": shadows, "canaries": canaries}
    summary["privacy"]["audit"] = {**AUDIT, "auc": 0.5, **asked, "asked": asked}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def broken_attack(folder, callback, shadows, canaries):
    """An attack that cannot be made."""
    raise DataError("too few examples to attack")


def fail_fedmd(experiment, callbacks=()):
    """One method's runs fail: with a clear error on even seeds, with a bug on odd ones."""
    if experiment.federation.method != "fedmd":
        run(experiment, callbacks)
    elif experiment.seed % 2 == 0:
        raise DataError("merchant 'shop-3' has no\nlabel")
    else:
        raise ZeroDivisionError("a bug")


def diverge_at_6e_3(experiment, callbacks=()):
    """Training diverges at a merchants' learning rate of 6e-3."""
    if experiment.training.merchants.learning_rate == 6e-3:
        raise TrainingError("the loss is not finite")
    run(experiment, callbacks)


def killed_once(experiment, callbacks=()):
    """Every run is killed the first time, after it has begun."""
    mark = experiment.runtime.folder / experiment.name / "begun"
    if not mark.exists():
        mark.parent.mkdir(parents=True)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    run(experiment, callbacks)


def hang(experiment, callbacks=()):
    """The first run that begins ends well, all others never do."""
    first = experiment.runtime.folder / "first"
    try:
        first.touch(exist_ok=False)
    except FileExistsError:
        folder = experiment.runtime.folder / experiment.name
        folder.mkdir(exist_ok=True)
        (folder / "pid").write_text(str(os.getpid()), encoding="ascii")
        threading.Event().wait()
    run(experiment, callbacks)
