"""Golden runs: a tiny run of each method and of each option that changes a result, beside what it gave when last seen.

A change that moves one of them was meant or was a mistake; where it was meant, ``pytest tests/e2e/test_golden.py
--golden`` stores the new figures, and the difference is there for a reviewer to see.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fed_distill import seeds
from fed_distill.data import load
from fed_distill.methods import METHODS
from fed_distill.models import build_student
from fed_distill.reporting.store import read_summary

STORED = Path(__file__).with_name("golden.json")
QUICK = {"controls": [], "adaptation.enabled": False, "data.max_merchants": 3}
SGD = {"training.merchants.optimizer": "sgd", "training.merchants.learning_rate": 0.1}
BERT = {"student.model": "bert-mini", "student.options": {"rows": 512, "width": 16, "layers": 2, "max_length": 24}}
PRIVATE = {"privacy.unit": "example", "privacy.epsilon": 8.0, "privacy.training.optimizer": "sgd"}
LABELS = {"privacy.unit": "label", "privacy.epsilon": 2.0, "privacy.texts_public": True}
METHOD_OPTIONS = {"scaffold": SGD, "selective-fd": {"federation.options": {"max_entropy": 0.99}}, "lp-mst": LABELS}
TRANSFERS = ("decisions", "hints", "hidden", "attention", "relations")
ORDERS = ("ranking", "listwise")

RUNS = {
    **{
        f"method {name}": {"federation.method": name, "federation.options": {}, **METHOD_OPTIONS.get(name, {})}
        for name in METHODS
        if name not in ("local", "personal")
    },
    **{f"transfer {kind}": {**BERT, "distill.transfer": ["probabilities", kind]} for kind in TRANSFERS},
    # alone and loud: a teacher this small tells candidates hardly apart
    **{f"transfer {kind}": {"distill.transfer": [kind], "distill.weights": {kind: 1000.0}} for kind in ORDERS},
    "hard weight": {"distill.hard_weight": 0.5},
    "final temperature": {"training.server.epochs": 2, "distill.final_temperature": 8.0},
    "chain": {"distill.assistants": [{"model": "lstm", "options": {"rows": 256, "width": 8}, "epochs": 1}]},
    "ensemble by seed": {"teacher.ensemble": [{"seed": 1}], "teacher.combine": "confidence"},
    "ensemble by domain": {"teacher.domains": 2, "teacher.combine": "similarity"},
    "masked language model": {**BERT, "student.masked.epochs": 1.0},
    "adaptation": {"adaptation.enabled": True},
    "label smoothing": {"training.label_smoothing": 0.2},
    "augmentation": {"training.augmentation": {"synonyms": 0.3, "deletion": 0.1, "characters": 0.05}},
    "adversarial fgm": {**BERT, "training.adversarial": {"attack": "fgm"}},
    "adversarial pgd": {**BERT, "training.adversarial": {"attack": "pgd", "steps": 2}},
    "dropout": {"student.options.dropout": 0.3},
    "r-drop": {**BERT, "student.options.dropout": 0.2, "training.r_drop": 0.5},
    "low-rank adapters": {**BERT, "student.options.lora_rank": 2},
    "adapters of factors": {**BERT, "student.options.ia3": True},
    "prefix": {**BERT, "student.options.prefix_length": 3},
    "early stopping": {"federation.rounds": 4, "federation.patience": 1},
    "schedule and clipping": {
        f"training.{whose}.{key}": value
        for whose in ("merchants", "server")
        for key, value in {"schedule": "cosine", "warmup_share": 0.3, "clip_norm": 0.5}.items()
    },
    "submodel averaging": {"federation.aggregator": "fedsubavg"},
    "robust submodels": {"federation.aggregator": "fedsubmedian"},
    "robust submodels, trimmed": {
        "federation.aggregator": "fedsubtrimmedavg",
        "federation.aggregator_options": {"beta": 0.4},
    },
    **{
        f"byzantine by {attack}": {"byzantine": {"fraction": 0.4, "attack": attack}}
        for attack in ("label-flip", "sign-flip", "scaled")
    },
    "adaptive server": {"federation.aggregator": "fedadam"},
    "participation": {"federation.participation": 0.5},
    "weights in 8 bits": {"transport.weights": ["int8"], "transport.downlink_weights": ["int8"]},
    "weights by sign": {"transport.weights": [{"stage": "top-k", "share": 0.2}, "sign"]},
    "weights by rank": {"transport.weights": [{"stage": "svd", "rank": 2}, "float16"]},
    "soft labels coded": {
        "federation.method": "fedmd",
        "federation.options": {},
        "transport.soft_labels": [{"stage": "top-k", "classes": 2}, "int4"],
        "transport.soft_label_cache": 0.01,
    },
    "few labels at the server": {"data.public_labels": 0.25},
    "proxy by coverage": {"data.proxy_choice": "coverage"},
    "proxy by uncertainty": {"data.proxy_choice": "uncertainty"},
    "privacy of examples": PRIVATE,
    "privacy with rates": {
        **PRIVATE,
        "privacy.accountant": "rdp",
        "privacy.rate_scales": {"bag.table": 10.0},
        "privacy.row_rate_power": 0.5,
        "privacy.weighting": "examples-squared",
    },
    "privacy of groups": {**PRIVATE, "privacy.unit": "group", "privacy.group": "pair"},
    "privacy of merchants": {"privacy.unit": "merchant", "privacy.epsilon": 50.0},
    "privacy of votes": {
        "federation.method": "pate",
        "federation.options": {},
        "privacy.unit": "vote",
        "privacy.epsilon": 50.0,
    },
}


@pytest.fixture(scope="module")
def stored(request):
    """The stored figures by run; with ``--golden`` what is measured takes their place at the end."""
    figures = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    if not request.config.getoption("--golden"):
        yield figures
        return
    measured = dict(figures)
    yield measured
    kept = {name: measured[name] for name in RUNS if name in measured}
    STORED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_what_it_gave(name, stored, request, tiny_experiment, simulate, tmp_path):
    experiment = tiny_experiment(tmp_path, {**QUICK, **RUNS[name]})
    folder, _ = simulate(experiment)
    summary = read_summary(folder)
    measured = summary["student"]
    figures = {metric: round(measured[metric], 4) for metric in ("auc", "macro_f1", "ndcg@10") if metric in measured}
    figures |= {
        name: round(value, 5) for name, value in distances(experiment, folder / "checkpoint" / "seed-0").items()
    }
    figures |= {name: round(summary["bytes"][f"{name}_per_merchant_round"]) for name in ("uplink", "downlink")}
    if request.config.getoption("--golden"):
        stored[name] = figures
    expected = stored[name]
    assert figures.keys() == expected.keys()
    for key, value in expected.items():  # another processor rounds otherwise
        tolerance = {"rel": 0.01} if key in ("taught", "moved", "uplink", "downlink") else {"abs": 0.03}
        assert figures[key] == pytest.approx(value, **tolerance), key


def distances(experiment, kept):
    """How far the server took its student from where it was drawn, and rounds from there, as L2 norms: whatever trains
    otherwise shows in one of them."""
    (start,), (end,) = kept.glob("server/*/final.safetensors"), kept.glob("federations/*/final.safetensors")
    config = experiment.student
    with seeds.scope(experiment.seed, "student", config.model):
        drawn = build_student(config.model, config.options, load(experiment.data).task).state_dict()
    before, after = load_file(start), load_file(end)
    return {"taught": apart(drawn, before), "moved": apart(before, after)}


def apart(one, other):
    return sum(float((other[name].double() - value).square().sum()) for name, value in one.items()) ** 0.5


def test_every_stored_run_is_still_made(stored):
    assert stored.keys() <= RUNS.keys()
