"""Every method plans the training on private examples that it declares, for which privacy is calibrated."""

from dataclasses import replace

import pytest

from fed_distill.methods import METHODS
from fed_distill.methods.base import private_training
from fed_distill.training.plan import Duration

OPTIONS = {"local_epochs": 2.0, "pretrain_epochs": 5.0, "local_steps": 7, "digest_epochs": 3.0}
ONE = (Duration(epochs=2.0),)


def built(name):
    accepted = METHODS.build(name, {}).__dataclass_fields__
    return METHODS.build(name, {key: value for key, value in OPTIONS.items() if key in accepted})


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("round", [1, 2, 5])
def test_a_plan_lasts_as_long_as_its_method_declares(name, round, state):
    method = built(name)
    plan = method.plan(method.broadcast(replace(state, round=round - 1)))
    assert plan.private_durations == method.private_durations(round)


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("fedavg", (ONE, ONE, ONE)),
        ("fedavg-kd", (ONE, ONE, ONE)),
        ("pate", (ONE, ONE, ONE)),
        ("scaffold", 3 * ((Duration(steps=7),),)),
        ("lp-mst", ((), (), ())),
        *(
            (name, ((Duration(epochs=5.0),), ONE, ONE))
            for name in ("fedmd", "dsfl", "cronus", "selective-fd", "expert-fd")
        ),
    ],
)
def test_all_rounds_are_known_before_the_first(name, rounds):
    assert private_training(built(name), 3).rounds == rounds


def test_pretraining_is_optional():
    method = METHODS.build("fedmd", {"local_epochs": 2.0})
    assert private_training(method, 2).rounds == (ONE, ONE)


def test_a_changed_duration_changes_the_plan(state):
    """A method that declares other durations need not override its plan."""

    class Tiring(type(METHODS.build("fedavg", {}))):
        def private_durations(self, round):
            return (Duration(steps=round),)

    plan = Tiring().plan(Tiring().broadcast(replace(state, round=3)))
    assert [phase.steps for phase in plan.phases] == [4]
