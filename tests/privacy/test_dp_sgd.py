"""DP-SGD's parameters and the noise of one step."""

import pytest
import torch

from fed_distill.privacy.dp_sgd import ExampleDP, gaussian
from fed_distill.runtime import seeds


def test_noise_has_the_deviation_of_its_multiplier_and_the_largest_norm():
    privacy = ExampleDP(noise_multiplier=1.5, max_grad_norm=0.2)
    noise = gaussian(200_000, privacy.deviation, seeds.torch_stream(0, "noise"))
    assert float(noise.std()) == pytest.approx(0.3, rel=0.01)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.003)


def test_steps_drawn_from_one_generator_differ_and_can_be_drawn_again():
    generator = seeds.torch_stream(0, "noise")
    first, second = gaussian(5, 1.0, generator), gaussian(5, 1.0, generator)
    again = seeds.torch_stream(0, "noise")
    assert not torch.equal(first, second)
    assert torch.equal(first, gaussian(5, 1.0, again)) and torch.equal(second, gaussian(5, 1.0, again))


def test_without_deviation_there_is_no_noise():
    assert gaussian(3, 0.0, seeds.torch_stream(0)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("noise_multiplier", "max_grad_norm"), [(-0.1, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_impossible_parameters_are_refused(noise_multiplier, max_grad_norm):
    with pytest.raises(ValueError, match=r"noise_multiplier >= 0, max_grad_norm > 0 and batch_size and rows >= 1"):
        ExampleDP(noise_multiplier, max_grad_norm)
