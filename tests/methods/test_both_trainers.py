"""Every method that there is runs by its name, as a cohort and one merchant after another, to the same students."""

import json
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from fed_distill.config import Experiment, FederationConfig
from fed_distill.config.privacy import table_of_unit
from fed_distill.errors import ConfigError
from fed_distill.experiment.preflight import check_settings
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.methods import METHODS
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes

QUICK = {
    "controls": [],
    "data.max_merchants": 3,
    "data.max_examples": 24,
    "data.proxy_size": 24,
    "adaptation.enabled": False,
    "training.merchants.optimizer": "sgd",
    "training.merchants.learning_rate": 0.1,
    "training.server.optimizer": "sgd",
    "training.server.learning_rate": 0.1,
}
OF_LABELS = ["lp-mst"]
"""Methods of randomized labels, which exist under unit label only."""
FEDERATED = [name for name in METHODS if name not in ("local", "personal", *OF_LABELS)]
"""Methods that are federations; the others are controls, and leave the global student as it is."""
OPTIONS = {name: {"max_entropy": 0.99} for name in ("selective-fd", "selective-fd-kulsif")}
"""Of hardly trained students nearly everything is ambiguous."""
PRIVATE = {"privacy.unit": "example", "privacy.noise_multiplier": 1.0, "privacy.training.optimizer": "sgd"}
COVERED = [name for name in FEDERATED if name not in ("fd", "fedproto", "fedtgp", "selective-fd-kulsif")]
"""Those that send nothing but what noise covers."""


def ran(experiment, simulate):
    """By federation: its rounds and the global student at its end; and that of the server before the first."""
    folder, _ = simulate(experiment)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = folder / "checkpoint" / "seed-0"
    start = load_file(kept / "server" / "two-tower" / "final.safetensors")
    ends = {name: load_file(kept / "federations" / name / "final.safetensors") for name in arms(experiment)}
    rounds = {name: [line for line in lines if line.get("federation") == name] for name in ends}
    return SimpleNamespace(start=start, ends=ends, rounds=rounds)


def arms(experiment):
    return [federation.title for federation in experiment.federations()]


@pytest.fixture(scope="module")
def runs(tiny_experiment, simulate, tmp_path_factory):
    """A function: runs of the same methods by both trainers."""

    def both(names, **changes):
        first, *others = ({"method": name, "options": OPTIONS.get(name, {})} for name in names)
        federation = {f"federation.{key}": value for key, value in first.items()}
        changes = {**QUICK, **federation, "compare": others, **changes}
        folders = {trainer: tmp_path_factory.mktemp(trainer) for trainer in ("cohort", "sequential")}
        return [
            ran(tiny_experiment(folder, {**changes, "runtime.trainer": trainer}), simulate)
            for trainer, folder in folders.items()
        ]

    return both


@pytest.fixture(scope="module")
def plain(runs):
    return runs(FEDERATED)


@pytest.fixture(scope="module")
def private(runs):
    return runs(COVERED, **PRIVATE)


@pytest.mark.parametrize("method", FEDERATED)
def test_both_trainers_end_at_the_same_student(plain, distance, method):
    cohort, sequential = plain
    assert distance(cohort.ends[method], sequential.ends[method]) < 1e-5
    assert distance(cohort.ends[method], cohort.start) > 1e-4
    for run in plain:
        rounds = run.rounds[method]
        assert [(line["merchants"], line["rejected"]) for line in rounds] == [(3, 0), (3, 0)]


@pytest.mark.parametrize("method", COVERED)
def test_both_trainers_are_protected_alike(private, distance, method):
    cohort, sequential = private
    assert distance(cohort.ends[method], sequential.ends[method]) < 1e-5
    for run in private:
        rounds = run.rounds[method]
        assert [(line["merchants"], line["rejected"]) for line in rounds] == [(3, 0), (3, 0)]


@pytest.mark.parametrize("method", OF_LABELS)
def test_both_trainers_of_the_server_learn_the_same_of_randomized_labels(runs, distance, method):
    """Merchants train nothing, and report no loss."""
    labels = {"privacy.unit": "label", "privacy.epsilon": 2.0, "privacy.texts_public": True}
    cohort, sequential = runs([method], **labels)
    assert distance(cohort.ends[method], sequential.ends[method]) < 1e-5
    assert distance(cohort.ends[method], cohort.start) > 1e-4
    for run in (cohort, sequential):
        rounds = run.rounds[method]
        assert [(line["merchants"], line["rejected"]) for line in rounds] == [(3, 0), (3, 0)]
        assert not any(line.get("train_loss") for line in rounds)


@pytest.mark.parametrize("privacy", [{}, {"privacy.unit": "example", "privacy.epsilon": 4.0}])
def test_randomized_labels_are_refused_before_a_run_that_does_not_randomize_them(tiny_experiment, tmp_path, privacy):
    changes = {**QUICK, "federation.method": "lp-mst", "federation.options": {}, **privacy}
    with pytest.raises(ConfigError, match=r"set privacy.unit = 'label'|without noise"):
        check_settings(tiny_experiment(tmp_path, changes))


def test_the_noised_mean_of_weights_goes_with_every_method_that_sends_nothing_else(runs, distance):
    names = [name for name in FEDERATED if METHODS.build(name, {}).sends == (StudentUpdate,)]
    assert {"fedavg", "fedntd", "moon", "fml"} <= set(names)
    cohort, sequential = runs(names, **{"privacy.unit": "merchant", "privacy.noise_multiplier": 1.0})
    for name in names:
        assert distance(cohort.ends[name], sequential.ends[name]) < 1e-5
        assert distance(cohort.ends[name], cohort.start) > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("unit", "covered"), [("merchant", (StudentUpdate,)), ("vote", (Votes,))])
def test_units_that_noise_one_part_refuse_methods_that_send_another(method, unit, covered):
    built, federation = METHODS.build(method, {}), FederationConfig(method=method, aggregator="fedavg", options={})
    experiment = Experiment(privacy=table_of_unit(unit)(unit=unit, epsilon=1.0))
    if built.sends == covered:
        mechanism_of(experiment).check(experiment, federation, built.sends)
    else:
        with pytest.raises(ConfigError, match=f"privacy.unit = '{unit}'"):
            mechanism_of(experiment).check(experiment, federation, built.sends)


def test_methods_that_send_no_weights_teach_the_global_student_anew_but_some():
    """Which go on from where it stands, on objectives of their own (Cho et al. 2022; Tan et al. 2022)."""
    built = {name: METHODS.build(name, {}) for name in (*FEDERATED, *OF_LABELS)}
    anew = {name for name, method in built.items() if "distil_anew" in method.uses}
    without_weights = {name for name, method in built.items() if not {StudentUpdate, LowRankUpdate} & set(method.sends)}
    assert anew == without_weights - {*OF_LABELS, "fedet", "fedproto", "fedtgp"}
