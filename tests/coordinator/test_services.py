"""A method's services: a teacher that the server trains goes on from round to round, and stays as it was for others."""

from types import SimpleNamespace

import pytest
import torch

from fed_distill.aggregation.fedavg import WeightedMean
from fed_distill.config.optimizer import OptimizerConfig
from fed_distill.coordinator.services import RoundServices, Teacher
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedavg import FedAvg
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.plan import Plan
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
    unused = dict.fromkeys(("count", "students", "server", "student", "teacher", "optimizer"))
    services = RoundServices(FedAvg(), "fedavg", WeightedMean(), randomness=(0, "fedavg", 1), **unused)
    with pytest.raises(UplinkRejected, match="weight"):
        services.average(current, [update])
