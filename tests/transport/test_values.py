"""Values of a downlink that no student can be trained from are rejected at the server and at a site."""

import math

import pytest
import torch

from fed_distill.errors import TrainingError
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.messages import Downlink
from fed_distill.transport.values import check_values

UNUSABLE = [math.nan, math.inf, -math.inf, 1e7, -1e7]


def sound():
    return Downlink(3, (StudentWeights({"a": torch.zeros(2), "b": torch.ones(2, 2)}),), {"rate": 0.5})


def test_sound_values_are_accepted_also_integers_and_empty_tensors():
    weights = {"step": torch.tensor(10**9), "empty": torch.empty(0, 4), "edge": torch.tensor([1e6, -1e6])}
    assert check_values(sound().having(StudentWeights(weights)), {"lstm": {"w": torch.zeros(1)}}) is None


@pytest.mark.parametrize("value", UNUSABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_weight_is_named_with_the_round(value, dtype):
    odd = torch.ones(2, 2, dtype=dtype)
    odd[1, 0] = value
    down = sound().having(StudentWeights({"a": torch.zeros(2), "b": odd}))
    with pytest.raises(TrainingError, match=r"^fedavg, round 3: weights 'b' of the downlink .* not finite"):
        check_values(down, {}, "fedavg, round 3: ")


@pytest.mark.parametrize("value", UNUSABLE)
def test_soft_labels_initial_weights_and_numbers_are_checked_too(value):
    labels = torch.full((3, 2), 0.5)
    labels[2, 1] = value
    with pytest.raises(TrainingError, match=rf"^{SoftLabels.name} 'soft_labels' of the downlink"):
        check_values(sound().having(SoftLabels(labels)), {})
    with pytest.raises(TrainingError, match=r"^initial weights of student 'lstm', 'w', of the downlink"):
        check_values(sound(), {"lstm": {"w": torch.tensor([0.0, value])}})
    with pytest.raises(TrainingError, match=r"^number 'rate' of the downlink"):
        check_values(Downlink(1, (), {"rate": value}), {})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_types_that_no_student_has_are_rejected(dtype):
    with pytest.raises(TrainingError, match="weights 'b' of the downlink"):
        check_values(sound().having(StudentWeights({"b": torch.zeros(2).to(dtype)})), {})
