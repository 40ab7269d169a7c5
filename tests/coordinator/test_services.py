"""A method's services: a teacher that the server trains goes on from round to round, and stays as it was for others."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fed_distill.aggregation.fedavg import WeightedMean
from fed_distill.config import LabelsConfig
from fed_distill.config.optimizer import OptimizerConfig
from fed_distill.coordinator.services import RoundServices, Teacher
from fed_distill.coordinator.students import Labelled
from fed_distill.data.examples import Examples
from fed_distill.errors import ConfigError, TrainingError, UplinkRejected
from fed_distill.mechanisms.label import ByLabel
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedavg import FedAvg
from fed_distill.methods.feddf import FedDF
from fed_distill.methods.lp_mst import LPMST
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.early_stopping import EarlyStopping
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Uplink


@pytest.fixture
def server(student):
    """Server training that adds 1 to every weight, and labels that are the head's bias as it is then."""
    name = next(name for name, value in student.named_parameters() if value.dim() == 1)

    def train(model, weights, plan, randomness, optimizer=None, progress=None):
        return {key: value + 1 for key, value in weights.items()}

    def labels(model):
        return model.state_dict()[name].clone().unsqueeze(0)

    return SimpleNamespace(train=train, proxy_labels=labels, name=name)


def test_a_trained_teacher_goes_on_from_the_round_before_and_labels_as_it_is_now(student, server):
    fine_tuned = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = Teacher(student, OptimizerConfig())
    state = GlobalState(0, {}, labels(fine_tuned, server))
    for number in (1, 2, 3):
        state = teacher.trained(state, Plan(()), server, (0, "fedmkt", "teacher", number))
        expected = {name: value + number for name, value in fine_tuned.items()}
        for name, value in expected.items():
            torch.testing.assert_close(state.teacher_weights[name], value)
        torch.testing.assert_close(state.teacher_labels, labels(expected, server))
    assert all(torch.equal(value, fine_tuned[name]) for name, value in student.state_dict().items())


def labels(weights, server):
    return weights[server.name].unsqueeze(0)


def test_finite_updates_whose_sum_is_not_finite_leave_the_student_as_it_was():
    current = {"weight": torch.full((3,), 3e38)}
    update = Uplink("hostile", 10, (StudentUpdate({"weight": torch.full((3,), 3e38)}),))
    unused = dict.fromkeys(
        ("count", "students", "server", "student", "teacher", "optimizer", "score", "local_rate", "mechanism")
    )
    services = RoundServices(FedAvg(), "fedavg", WeightedMean(), randomness=(0, "fedavg", 1), **unused)
    with pytest.raises(UplinkRejected, match="weight"):
        services.average(current, [update])


@pytest.mark.parametrize(
    ("scores", "kept", "trained"),
    [
        ((0.1, 0.3, 0.2, 0.4, 0.1, 0.2), 3, 5),  # 3 checks of 4 steps; from the best one, 2 more with a patience of 8
        ((0.5, 0.3, 0.5, 0.9), 0, 2),  # no better one: an equal score does not count
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 5, 5),  # 18 steps in all
    ],
)
def test_distillation_ends_after_patience_and_keeps_the_best_student_by_the_servers_own_score(scores, kept, trained):
    plans, number = [], []

    def train(model, weights, plan, randomness, optimizer=None):
        plans.append((plan.phases[0].steps, randomness))
        return {"w": weights["w"] + 1}

    def score(model):
        number.append(None)
        return scores[len(number) - 1]

    student = SimpleNamespace(load_state_dict=lambda weights: None)
    config = SimpleNamespace(server=SimpleNamespace(batch_size=10))
    server = SimpleNamespace(train=train, data=SimpleNamespace(proxy=range(60)), config=config)
    unused = dict.fromkeys(("count", "students", "teacher", "optimizer", "local_rate", "mechanism"))
    services = RoundServices(
        FedDF(), "feddf", WeightedMean(), server=server, student=student, randomness=(0, "a", 2), score=score, **unused
    )
    plan = Plan((Phase(lambda outputs, references: outputs.logits, data="proxy", epochs=3.0),))  # 3 * 60 / 10 steps
    best = services.distil({"w": torch.tensor(0)}, plan, EarlyStopping(patience=8, check_every=4))
    assert int(best["w"]) == kept
    assert plans == [(size, (0, "a", "server", 2, place)) for place, size in enumerate((4, 4, 4, 4, 2)[:trained])]


def test_early_stopping_needs_to_know_which_phase_ends():
    phase = Phase(lambda outputs, references: outputs.logits, data="proxy", steps=3)
    with pytest.raises(TrainingError, match="plans of one phase, not of 2"):
        EarlyStopping(1, 1).chunks(Plan((phase, phase)), 6)


@pytest.mark.parametrize("changes", [{}, {"targets": "labels"}, {"label_temperature": 2.0}])
def test_randomized_labels_of_all_merchants_are_trained_on_with_the_student_as_prior(changes):
    """Each text beside its own label. The prior is the student before each pass, at the temperature of the training."""
    labels = ByLabel("label", LabelsConfig(texts_public=True, **changes))
    logits, seen = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.5, 0.0]]), []

    def received(model, examples, randomness):
        seen.append((examples, randomness))
        return Labelled({"texts": examples.texts}, torch.from_numpy(examples.labels))

    def predicted(model, weights, received, temperature):
        return (weights["scale"] * logits / temperature).softmax(dim=1)

    def train_on(model, weights, received, plan, randomness):
        seen.append((received, plan.phases, randomness))
        return {"scale": weights["scale"] + 1}

    unused = dict.fromkeys(("count", "students", "student", "teacher", "optimizer", "score", "local_rate"))
    services = RoundServices(
        LPMST(),
        "lp-mst",
        WeightedMean(),
        server=SimpleNamespace(train_on=train_on, predicted=predicted, received=received),
        randomness=(0, "a", 2),
        mechanism=labels,
        epsilon=math.log(3.0),
        **unused,
    )
    released = {"a": released_of("tent", "shoes", labels=[1, 0]), "b": released_of("stove", labels=[1])}
    assert services.train_on_released({"scale": 1}, released, 2, 0.5) == {"scale": 3}
    (examples, own), *passes = seen
    assert (examples.texts, examples.merchants) == (("shoes", "tent", "stove"), ("a", "a", "b"))
    assert examples.labels.tolist() == [0, 1, 1]
    assert own == (0, "a", "released labels", 2)
    assert [randomness for *_, randomness in passes] == [(*own, 0), (*own, 1)]
    odds = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.25, 0.75]])  # e^epsilon = 3
    for place, (sent, (phase,), _) in enumerate(passes):
        assert (phase.data, phase.epochs, phase.learning_rate_scale) == ("private", 1.0, 0.5)
        assert sent.encoded == {"texts": examples.texts} and sent.labels.tolist() == [0, 1, 1]
        if "targets" in changes:
            assert sent.probabilities is None and sent.temperature == 1.0
            continue
        assert sent.temperature == changes.get("label_temperature", 8.0 / math.log(3.0))
        joint = ((place + 1) * logits / sent.temperature).softmax(dim=1) * odds
        torch.testing.assert_close(sent.probabilities, joint / joint.sum(dim=1, keepdim=True))


def released_of(*texts, labels):
    none = np.full(len(texts), -1)
    outputs = torch.tensor([[0, 1]] * len(texts))
    return ReleasedLabels.of(Examples(texts, None, none, none, texts), torch.tensor(labels), outputs)


def test_without_randomized_labels_there_is_nothing_to_train_on():
    unused = dict.fromkeys(("count", "students", "server", "student", "teacher", "optimizer", "score", "local_rate"))
    services = RoundServices(LPMST(), "lp-mst", WeightedMean(), randomness=(0, "a", 1), mechanism=None, **unused)
    with pytest.raises(ConfigError, match=r"set privacy\.unit = 'label'"):
        services.train_on_released({}, {}, 1, 1.0)
