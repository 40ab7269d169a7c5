"""Options that no training can mean are refused by name, before anything is trained."""

import inspect
import re
from contextlib import nullcontext
from dataclasses import fields

import pytest

from fed_distill.config import Experiment, FederationConfig
from fed_distill.data.examples import Task
from fed_distill.errors import ConfigError
from fed_distill.methods import METHODS
from fed_distill.methods.checks import check, check_task


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("fedavg", "local_epochs", 0.0),
        ("fedavg", "local_epochs", float("inf")),
        ("fedavg-kd", "local_epochs", -1.0),
        ("fedavg-kd", "proxy_steps", -1),
        ("fedavg-kd", "temperature", 0.0),
        ("fedprox", "proximal_mu", -0.1),
        ("feddf", "server_epochs", 0.0),
        ("feddf", "patience", 0),
        ("feddf", "check_every", 0),
        ("feddf", "teacher_share", 1.5),
        ("fedmd", "digest_epochs", 0.0),
        ("fedmd", "teacher_share", -0.5),
        ("fedmd", "pretrain_epochs", -1.0),
        ("fedmd", "temperature", float("nan")),
        ("dsfl", "aggregation", "sum"),
        ("dsfl", "era_temperature", 0.0),
        ("dsfl", "beta", -1.0),
        ("dsfl", "teacher_share", 1.5),
        ("cronus", "robust", "krum"),
        ("cronus", "byzantine_fraction", 0.5),
        ("selective-fd", "answer_share", 0.0),
        ("selective-fd", "max_entropy", 1.0),
        ("expert-fd", "answer_share", 0.0),
        ("expert-fd", "concentration", 501.0),
        ("fd", "gamma", -0.1),
        ("fd", "local_epochs", 0.0),
        ("fedntd", "beta", -0.1),
        ("fedntd", "temperature", 0.0),
        ("moon", "mu", -1.0),
        ("moon", "temperature", 0.0),
        ("scaffold", "local_epochs", 0.0),
        ("scaffold", "local_steps", 0),
        ("scaffold", "weighting", "steps"),
        ("fedproto", "regularization", -0.1),
        ("fedtgp", "server_steps", 0),
        ("fedtgp", "margin_cap", 0.0),
        ("fedproto", "server_epochs", 0.0),
        ("fml", "alpha", 1.1),
        ("fml", "beta", -0.1),
        ("fedkd", "energy_start", 0.0),
        ("fedkd", "energy_end", 1.1),
        ("fedet", "diversity", -0.1),
        ("fedmkt", "teacher_epochs", 0.0),
        ("fedmkt", "teacher_share", 1.5),
    ],
)
def test_an_option_out_of_range_is_named(method, option, value):
    with pytest.raises(ConfigError, match=f"method '{method}', option {option} must be"):
        METHODS.build(method, {option: value})


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fedavg-kd", {"proxy_steps": 0, "local_epochs": 0.25}),
        ("fedprox", {"proximal_mu": 0.0}),
        ("feddf", {"teacher_share": 1.0}),
        ("fedmd", {"teacher_share": 0.0, "pretrain_epochs": 0.0}),
        ("dsfl", {"aggregation": "enhanced-era", "beta": 1.0}),
        ("cronus", {"byzantine_fraction": 0.0}),
        ("selective-fd", {"answer_share": 1.0, "max_entropy": 0.0}),
        ("expert-fd", {"answer_share": 1.0, "concentration": 500.0, "teacher_share": 0.0}),
        ("fd", {"gamma": 0.0}),
        ("fedntd", {"beta": 0.0}),
        ("moon", {"mu": 0.0}),
        ("fml", {"alpha": 1.0, "beta": 0.0}),
        ("fedkd", {"energy_start": 1.0, "energy_end": 1.0}),
        ("fedet", {"diversity": 0.0}),
        ("fedmkt", {"teacher_share": 1.0, "teacher_epochs": 0.1}),
    ],
)
def test_the_ends_of_a_range_are_allowed(method, options):
    assert METHODS.build(method, options)


@pytest.mark.parametrize(
    ("method", "rounds", "option", "others", "effective"),
    [
        ("fedmd", 1, "digest_epochs", {"pretrain_epochs": 2.0}, {"pretrain_epochs": 0.0}),
        ("expert-fd", 1, "local_epochs", {}, {"pretrain_epochs": 0.0}),
        ("fedet", 1, "temperature", {"pretrain_epochs": 2.0}, {"pretrain_epochs": 0.0}),
        ("fedmkt", 1, "local_epochs", {"pretrain_epochs": 2.0}, {"pretrain_epochs": 0.0}),
        ("dsfl", 2, "beta", {}, {"aggregation": "enhanced-era"}),
        ("dsfl", 2, "era_temperature", {"aggregation": "mean"}, {"aggregation": "era"}),
        ("dsfl", 1, "digest_epochs", {"pretrain_epochs": 2.0}, {"pretrain_epochs": 0.0}),
        ("cronus", 2, "byzantine_fraction", {"robust": "median"}, {"robust": "trimmed-mean"}),
        ("cronus", 1, "temperature", {"pretrain_epochs": 2.0}, {"pretrain_epochs": 0.0}),
        ("fedavg-kd", 2, "temperature", {"proxy_steps": 0}, {"proxy_steps": 1}),
        ("feddf", 2, "check_every", {}, {"patience": 300}),
        ("scaffold", 2, "local_epochs", {"local_steps": 4}, {}),
    ],
)
def test_an_option_without_effect_is_refused_only_where_it_has_none(method, rounds, option, others, effective):
    own = {option: getattr(METHODS.build(method, {}), option)}

    def checked(options):
        federation = FederationConfig(method=method, options=options, rounds=rounds)
        check(Experiment(), federation, METHODS.build(method, options))

    with pytest.raises(ConfigError, match=f"{method}: options.{option} has no effect, since .*: remove {option}"):
        checked({**others, **own})
    checked(others)
    checked({**effective, **own})


@pytest.mark.parametrize("option", ["local_epochs", "digest_epochs", "temperature"])
def test_what_needs_a_consensus_has_an_effect_from_the_second_round_on(option):
    options = {"pretrain_epochs": 2.0, option: 1.5}
    for rounds, idle in ((1, True), (2, False)):
        assert (option in METHODS.build("fedmd", options).idle_options(rounds)) is idle
    assert "temperature" not in METHODS.build("fedmkt", options).idle_options(1)


def test_patience_that_ends_before_the_second_score_is_refused():
    """It would end distillation at the first score that is no better, whatever its number."""
    training = Experiment().training.merchants
    for patience, check_every, refused in ((3, 100, True), (99, 100, True), (100, 100, False), (3, 3, False)):
        options = {"patience": patience, "check_every": check_every}
        federation = FederationConfig(method="feddf", options=options, rounds=2)
        told = pytest.raises(ConfigError, match="scores are 100 steps apart: set patience = 100 or more")
        with told if refused else nullcontext():
            METHODS.build("feddf", options).check(federation, training, 2)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_option_is_described(method):
    built = METHODS.resolve(method)
    described = " ".join(inspect.getdoc(one) or "" for one in built.__mro__)
    assert not [option.name for option in fields(built) if not re.search(rf"\b{option.name}\b[^.]*:\s", described)]


@pytest.mark.parametrize(("method", "option"), [("fd", "gamma"), ("moon", "mu"), ("fedkd", "energy_end")])
def test_what_needs_an_earlier_round_has_no_effect_in_the_only_one(method, option):
    for rounds, idle in ((1, True), (2, False)):
        assert (option in METHODS.build(method, {}).idle_options(rounds)) is idle


@pytest.mark.parametrize(("method", "options"), [("fedet", {}), ("fedmkt", {}), ("fedmkt", {"choose": "mean"})])
def test_memory_that_grows_with_the_square_of_the_classes_is_refused_before_it_is_needed(method, options):
    task = Task("category", tuple(f"class {number}" for number in range(600)), pair=False, positive="class 0")
    federation = FederationConfig(method=method, options=options)
    experiment = Experiment(federation=federation)
    refused = pytest.raises(ConfigError, match=r"would need 11 GiB .* 600 classes on a proxy set of 4,000")
    with nullcontext() if options else refused:
        check_task(experiment, federation, METHODS.build(method, options), task)
    check_task(experiment.with_changes({"data.proxy_size": 500}), federation, METHODS.build(method, options), task)
