"""Stages for updates keep their promises: error bounds, means, zeros, bytes, and nothing believed unchecked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fed_distill.errors import ConfigError
from fed_distill.transport.coding import UPDATE_STAGES
from fed_distill.transport.coding.base import Chain
from fed_distill.transport.coding.stream import Reader, Writer
from fed_distill.transport.coding.updates import SVD, Float16, Int4, Int8, Sign, TopK

FLOATS = st.floats(-1e4, 1e4, width=32) | st.just(0.0) | st.floats(-(2.0**-20), 2.0**-20, width=32)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=7), elements=FLOATS).map(
    torch.from_numpy
)
SCALE = 1 + 2**-7
"""A scale is rounded up to 8 significant bits."""
CHAINS = {
    "nothing": (),
    "float16": (Float16(),),
    "int8": (Int8(),),
    "int4": (Int4(),),
    "sign": (Sign(),),
    "top-k": (TopK(0.3),),
    "svd": (SVD(0.8),),
    "top-k, int8": (TopK(0.3), Int8()),
    "top-k, sign": (TopK(0.3), Sign()),
    "svd, int8": (SVD(0.8), Int8()),
    "svd, sign": (SVD(0.8), Sign()),
    "svd, top-k, float16": (SVD(0.8), TopK(0.5), Float16()),
}


def by_row(value):
    return value.reshape(len(value), -1)


@given(MATRICES)
def test_without_a_stage_values_are_float32_as_they_are(through, value):
    got, size = through((), value)
    assert torch.equal(got, value)
    assert size == 4 * value.numel()


@given(MATRICES)
def test_float16_is_off_by_half_a_unit_in_the_last_place(through, value):
    got, size = through([Float16()], value)
    assert size == 2 * value.numel()
    assert bool(((got - value).abs() <= torch.maximum(value.abs() * 2**-11, torch.tensor(2.0**-25))).all())


def test_what_float16_cannot_hold_is_the_largest_that_it_can(through):
    got, _ = through([Float16()], torch.tensor([[1e6, -7e4, 1.0]]))
    assert got.tolist() == [[65504.0, -65504.0, 1.0]]


@pytest.mark.parametrize(("stage", "levels"), [(Int8(), 127), (Int4(), 7)])
@given(value=MATRICES)
def test_a_quantized_entry_is_off_by_less_than_a_step_of_its_row(through, stage, levels, value):
    got, size = through([stage], value)
    step = by_row(value).abs().amax(dim=1, keepdim=True).double() / levels * SCALE
    apart = (by_row(got).double() - by_row(value).double()).abs()
    assert bool((apart <= step * (1 + 1e-5) + 1e-37).all())  # subnormals have few digits
    assert size == 2 * len(value) + math.ceil(value.numel() * (8 if levels == 127 else 4) / 8)


@pytest.mark.parametrize(("stage", "levels"), [(Int8(), 127), (Int4(), 7)])
def test_a_step_that_is_rounded_up_allows_an_error_of_that_much_more(through, stage, levels):
    """The step of this row is 1 and a little more, and the next bfloat16 is 1 + 2^-7."""
    largest = levels * (1 + 2**-14)
    value = torch.linspace(-largest, largest, 200_001).unsqueeze(0)
    got, _ = through([stage], value)
    error = float((got - value).abs().max()) / largest
    assert 1 / levels < error <= SCALE / levels


@pytest.mark.parametrize("stage", [Int8(), Int4()])
def test_the_mean_of_a_quantized_update_is_the_update(through, stage):
    draws = 4000
    value = torch.tensor([[1.0, 0.3, -0.77, 0.001], [0.02, -0.011, 0.0, 0.007]])
    got, _ = through([stage], value.repeat(draws, 1))
    mean = got.reshape(draws, 2, 4).double().mean(dim=0)
    step = value.abs().amax(dim=1, keepdim=True) / stage.levels * SCALE
    assert bool(((mean - value).abs() <= 5 * 0.5 * step / math.sqrt(draws)).all())


def test_signs_are_scaled_by_the_mean_magnitude_of_their_row(through):
    value = torch.tensor([[1.0, -2.0, 3.0, -2.0], [0.5, 0.5, -0.25, 0.75]])
    got, size = through([Sign()], value)
    assert got.tolist() == [[2.0, -2.0, 2.0, -2.0], [0.5, 0.5, -0.5, 0.5]]
    assert size == 2 * 2 + 1 + 1


def test_entries_that_are_zero_have_no_sign(through):
    value = torch.tensor([[1.0, 0.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    got, size = through([Sign()], value)
    assert got.tolist() == [[2.0, 0.0, 2.0, -2.0], [0.0] * 4]
    assert size == 2 * 2 + 1 + 1 + 1


@given(MATRICES)
def test_signs_with_their_scale_are_a_contraction_as_error_feedback_needs_it(through, value):
    """The squared error is below the square of the update itself (Karimireddy et al., ICML 2019, assumption A)."""
    got, _ = through([Sign()], value)
    error, square = (got.double() - value.double()).square().sum(), value.double().square().sum()
    least = 2.0**-133  # the smallest bfloat16: a scale below it is rounded up to it
    assert error <= square * (1 + 1e-3) + value.numel() * least**2


@given(MATRICES, st.floats(0.01, 1.0))
def test_top_k_keeps_the_largest_and_no_other(through, value, share):
    got, _ = through([TopK(share)], value)
    count = min(max(1, math.ceil(share * value.numel())), value.numel())
    least = value.abs().flatten().sort(descending=True).values[count - 1]
    kept = got != 0
    assert torch.equal(got[kept], value[kept])
    assert int(kept.sum()) <= count
    assert bool((value[~kept].abs() <= least).all())
    assert int(kept.sum()) == min(count, int((value != 0).sum()))


def test_top_k_takes_the_bytes_of_its_values_and_about_a_byte_for_each_place(through):
    value = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    _, size = through([TopK(0.01), Int8()], value)
    assert size < 320 * (1 + 8.3 / 8) + 20
    assert 4 * value.numel() / size > 190


def test_svd_is_the_best_approximation_of_its_rank(through):
    draw = torch.Generator().manual_seed(0)
    value = torch.randn(30, 2, generator=draw) @ torch.randn(2, 20, generator=draw)
    got, size = through([SVD(0.999999)], value)
    torch.testing.assert_close(got, value, atol=1e-4, rtol=1e-4)
    assert size == 4 + 2 * 50 * 4
    noisy = value + 0.1 * torch.randn(30, 20, generator=draw)
    got, _ = through([SVD(0.9, rank=2)], noisy)
    left, values, right = np.linalg.svd(noisy.numpy())
    rank = int(np.argmax(np.cumsum(values**2) >= 0.9 * np.sum(values**2))) + 1
    assert rank <= 2
    best = left[:, :rank] @ np.diag(values[:rank]) @ right[:rank]
    np.testing.assert_allclose(got.numpy(), best, atol=1e-4)


def test_a_matrix_of_no_low_rank_is_sent_itself(through):
    value = torch.eye(6)
    got, size = through([SVD(0.99)], value)
    assert torch.equal(got, value)
    assert size == 4 + 36 * 4


@pytest.mark.parametrize("chain", CHAINS)
@given(value=MATRICES, data=st.data())
def test_rows_that_did_not_move_stay_in_every_chain(through, chain, value, data):
    still = data.draw(hnp.arrays(np.bool_, len(value)))
    value[torch.from_numpy(still)] = 0.0
    got, _ = through(CHAINS[chain], value)
    assert got.shape == value.shape
    assert bool(torch.isfinite(got).all())
    assert not got[torch.from_numpy(still)].any()


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1)])
def test_empty_and_tiny_arrays_travel(through, chain, shape):
    got, size = through(CHAINS[chain], torch.full(shape, 2.0))
    assert got.shape == shape
    assert size == 0 or bool((got > 1.8).all())


def test_a_stage_after_one_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"stage 1 \(Int8\) passes no numbers .* put it last"):
        Chain((Int8(), TopK()))


@pytest.mark.parametrize("stage", [TopK(), SVD()])
def test_a_matrix_of_what_another_stage_left_is_refused(stage):
    with pytest.raises(ConfigError, match=r"stage 2 \(SVD\) encodes whole arrays, .* put it first"):
        Chain((stage, SVD(), Int8()))


@pytest.mark.parametrize(
    ("stage", "option", "value"),
    [("top-k", "share", 0.0), ("top-k", "share", 1.1), ("svd", "energy", 0.0), ("svd", "rank", 0)],
)
def test_options_out_of_range_are_named(stage, option, value):
    with pytest.raises(ConfigError, match=f"weight stage '{stage}', option {option} must be"):
        UPDATE_STAGES.build(stage, {option: value})


def test_stages_that_fix_their_bits_take_no_option():
    with pytest.raises(ConfigError, match="'int8' has no option 'bits'; it has none"):
        UPDATE_STAGES.build("int8", {"bits": 4})


def nan_scales(shape, payload):
    out = Writer()
    out.array(np.array([0x7FC0] * shape[0], dtype=np.uint16))
    out.raw(payload)
    return out.content()


FORGED = {
    "nan scale": ((Int8(),), nan_scales((2, 4), bytes(8)), "scales that are negative or not finite"),
    "infinite scale": ((Int8(),), b"\x80\x7f" * 2 + bytes(8), "scales that are negative or not finite"),
    "negative scale": ((Sign(),), b"\x80\xbf" * 2 + bytes(2), "scales that are negative or not finite"),
    "beyond the last step": ((Int8(),), bytes(4) + b"\xff" * 8, "quantized values above 127 steps"),
    "more entries than its share": ((TopK(0.5),), b"\x05\x00\x00\x00" + bytes(40), "it has 5 of 8 entries"),
    "all entries": ((TopK(0.5),), b"\xff\xff\xff\xff", "entries, more than the share"),
    "a rank beyond all use": ((SVD(),), b"\x02\x00\x00\x00" + bytes(80), "factors of rank 2"),
    "too short": ((Int8(),), bytes(5), "ends too early"),
    "an odd mask": ((Sign(),), bytes(4) + b"\x02" + bytes(2), "flag for zero entries is invalid"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_bytes_are_refused(case):
    stages, data, message = FORGED[case]
    with pytest.raises(ValueError, match=message):
        Chain(stages).decode((2, 4), Reader(data))


@pytest.mark.parametrize("chain", CHAINS)
@given(data=st.binary(max_size=60))
def test_whatever_bytes_come_give_the_shape_or_are_refused(chain, data):
    try:
        got = Chain(CHAINS[chain]).decode((3, 5), Reader(data))
    except ValueError:
        return
    assert got.shape == (3, 5)
