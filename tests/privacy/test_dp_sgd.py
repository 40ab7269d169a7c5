"""DP-SGD's parameters and the noise of one step."""

import math

import pytest
import torch
from scipy import stats

from fed_distill.privacy.dp_sgd import ExampleDP, add_noise, grid, sampling_rate
from fed_distill.seeds import Keystream

deviations = pytest.mark.parametrize("deviation", [1e-4, 0.3, 1.0, 77.0])


def noised(total, deviation, name="noise"):
    return add_noise(total, deviation, Keystream(0, name))


@deviations
def test_noise_is_normal_with_its_deviation(deviation):
    """Within intervals that hold with a probability of 1 - 1e-6 each."""
    count = 200_000
    noise = noised(torch.zeros(count), deviation).double() / deviation
    low, high = stats.chi2(count).interval(1 - 1e-6)
    assert low < float(noise.square().sum()) < high
    assert abs(float(noise.mean())) < stats.norm.isf(5e-7) / math.sqrt(count)
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-6


def test_noise_is_of_the_multiplier_and_the_largest_norm():
    assert ExampleDP(noise_multiplier=1.5, max_grad_norm=0.2).deviation == pytest.approx(0.3)


@deviations
def test_noised_sums_are_multiples_of_the_grid(deviation):
    total = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 5.0
    found, step = noised(total, deviation), grid(deviation)
    assert found.dtype == torch.float32
    assert torch.equal((found.double() / step).round() * step, found.double())
    assert math.frexp(step)[0] == 0.5 and 2.0**-17 < step / deviation <= 2.0**-16


def test_of_equal_streams_the_noise_is_equal_up_to_rounding_whatever_it_is_added_to():
    total = torch.linspace(-3.0, 3.0, 1_000)
    alone, added = noised(torch.zeros(1_000), 0.3), noised(total, 0.3)
    torch.testing.assert_close((added - alone).double(), total.double(), rtol=0.0, atol=grid(0.3) + 1e-6)


def test_steps_drawn_from_one_stream_differ_and_can_be_drawn_again():
    zeros, stream, again = torch.zeros(5), Keystream(0, "noise"), Keystream(0, "noise")
    first, second = add_noise(zeros, 1.0, stream), add_noise(zeros, 1.0, stream)
    assert not torch.equal(first, second)
    assert torch.equal(first, add_noise(zeros, 1.0, again)) and torch.equal(second, add_noise(zeros, 1.0, again))


def test_without_deviation_there_is_no_noise():
    total = torch.tensor([1.0, -1e-30, math.pi])
    assert torch.equal(noised(total, 0.0), total)


def test_low_bits_of_what_is_released_do_not_tell_the_sum():
    """Mironov (CCS 2012): float32 noise misses numbers that a sum of it and something hits. Whoever looks for these
    tells sums 0 and 1 apart under noise of 1536; on the grid both give the same numbers."""
    count, deviation = 2_000, 1536.0
    sums = torch.zeros(count), torch.ones(count)
    stream = torch.Generator().manual_seed(1)

    def float_noise_can_be(released):
        near = released / deviation
        close = (near, *(torch.nextafter(near, torch.full_like(near, end)) for end in (-torch.inf, torch.inf)))
        return torch.stack([one * deviation == released for one in close]).any(dim=0)

    leaky = [float_noise_can_be(total + deviation * torch.randn(count, generator=stream)) for total in sums]
    assert bool(leaky[0].all()) and int((~leaky[1]).sum()) > 100

    for total, name in zip(sums, ("one", "other"), strict=True):
        steps = noised(total, deviation, name).double() / grid(deviation)
        assert torch.equal(steps, steps.round())
        bits = torch.stack([steps.remainder(2.0**bit) >= 2.0 ** (bit - 1) for bit in range(1, 9)])
        assert float((bits.double().mean(dim=1) - 0.5).abs().max()) < stats.norm.isf(1e-7) / 2 / math.sqrt(count)


@pytest.mark.parametrize(("noise_multiplier", "max_grad_norm"), [(-0.1, 1.0), (1.0, 0.0), (1.0, -1.0)])
def test_impossible_parameters_are_refused(noise_multiplier, max_grad_norm):
    with pytest.raises(ValueError, match=r"noise_multiplier >= 0, max_grad_norm > 0 and batch_size and rows >= 1"):
        ExampleDP(noise_multiplier, max_grad_norm)


def test_the_rate_is_of_members_and_at_most_1():
    assert sampling_rate(40, 4) == pytest.approx(0.1)
    assert sampling_rate(3, 4) == 1.0
