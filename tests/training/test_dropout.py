"""Seeded dropout: the rate it says, the mask of an example wherever it is, and the published generator."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill import seeds
from fed_distill.training.dropout import SeededDropout, mixed

SEEDS = [seeds.key(0, "merchant", number) for number in range(3)]


def dropped(values, steps=(0,), sizes=None, first=0, of=SEEDS, p=0.5, calls=1):
    """What is left of ``values`` after the last of ``calls`` calls in one forward pass.

    sizes: examples of each merchant, equally many unless said. first: the place of each one's first example.
    """
    sizes = sizes or [len(values) // len(steps)] * len(steps)
    owner = torch.arange(len(steps)).repeat_interleave(torch.tensor(sizes))
    column = torch.cat([torch.arange(first, first + size) for size in sizes])
    dropout = SeededDropout(of[: len(steps)])
    with dropout:
        dropout.begin(steps, owner, column)
        for _ in range(calls):
            found = F.dropout(values, p)
    return found


def as_unsigned(values):
    return [value % 2**64 for value in values]


def test_the_mixer_is_splitmix64():
    """First outputs for seed 0 and 1234567, as published with the reference implementation (Vigna's splitmix64.c)."""
    golden = 0x9E3779B97F4A7C15
    expected = {
        0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
        1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423],
    }
    for seed, outputs in expected.items():
        states = [(seed + golden * (number + 1)) % 2**64 for number in range(3)]
        signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
        assert as_unsigned(mixed(signed).tolist()) == outputs


@given(st.integers(0, 2**64 - 1))
def test_the_mixer_is_that_of_unbounded_integers(state):
    value = state
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    value ^= value >> 31
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state])
    assert as_unsigned(mixed(signed).tolist()) == [value]


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_as_many_entries_are_dropped_as_asked(p):
    """Within five standard deviations, over all entries and along every dimension; what is kept is scaled."""
    found = dropped(torch.ones(60, 40, 50), (3, 8), p=p)
    kept = found > 0
    assert torch.allclose(found[kept], torch.tensor(1 / (1 - p)))
    for dimension in range(3):
        others = tuple(other for other in range(3) if other != dimension)
        entries = kept.numel() / kept.shape[dimension]
        shares = kept.float().mean(dim=others)
        assert float((shares - (1 - p)).abs().max()) < 5 * math.sqrt(p * (1 - p) / entries)
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=5 * math.sqrt(p * (1 - p) / kept.numel()))


def test_masks_of_two_forward_passes_are_unrelated():
    """Merchants, steps, calls and neighbouring examples: each pair agrees on half of its entries, as coins do."""
    ones = torch.ones(2, 100, 100)
    first = dropped(ones)
    others = {
        "merchant": dropped(ones, of=SEEDS[1:]),
        "step": dropped(ones, (1,)),
        "far step": dropped(ones, (1000,)),
        "call": dropped(ones, calls=2),
        "step and call": dropped(ones, (1,), calls=2),
        "example": dropped(ones, first=1),
        "rows for columns": first.transpose(1, 2),
    }
    for name, other in others.items():
        agreeing = float((first == other).float().mean())
        assert agreeing == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(20_000)), name
    assert float((first[0] == first[1]).float().mean()) == pytest.approx(0.5, abs=0.025)


def test_the_same_pass_has_the_same_mask():
    ones = torch.ones(3, 4, 5)
    before = dropped(ones, (7,))
    torch.rand(10)
    assert torch.equal(before, dropped(ones, (7,)))


@settings(max_examples=30, deadline=None)
@given(
    merchants=st.integers(1, 3),
    examples=st.integers(1, 5),
    length=st.integers(1, 6),
    more=st.integers(0, 4),
    together=st.integers(1, 5),
)
def test_padding_parts_and_company_change_no_mask(merchants, examples, length, more, together):
    draw = seeds.torch_stream(merchants, examples, length)
    values = torch.randn(merchants, examples, length, 4, generator=draw)
    steps = [3, 8, 2][:merchants]
    alone = torch.stack([dropped(values[k], steps[k : k + 1], of=SEEDS[k:]) for k in range(merchants)])
    padded = F.pad(values, (0, 0, 0, more, 0, more))
    together_found = dropped(padded.flatten(0, 1), steps).view_as(padded)
    assert torch.equal(together_found[:, :examples, :length], alone)
    turned = dropped(values.flip(0).flatten(0, 1), steps[::-1], of=SEEDS[:merchants][::-1])
    assert torch.equal(turned.view_as(values).flip(0), alone)
    parts = [
        dropped(values[:, first : first + together].flatten(0, 1), steps, first=first)
        for first in range(0, examples, together)
    ]
    whole = torch.cat([part.view(merchants, -1, length, 4) for part in parts], dim=1)
    assert torch.equal(whole, alone)


@pytest.mark.parametrize("sizes", [[5, 2, 3], [0, 7, 3], [9, 0, 1]])
def test_merchants_with_different_numbers_of_examples_have_the_masks_they_have_alone(sizes):
    values = torch.randn(sum(sizes), 4, 6, generator=seeds.torch_stream(1))
    found = dropped(values, (3, 8, 2), sizes).split(sizes)
    for place, (own, part) in enumerate(zip(values.split(sizes), found, strict=True)):
        assert torch.equal(part, dropped(own, (3, 8, 2)[place : place + 1], of=SEEDS[place:]))


def test_a_batch_of_one_merchant_alone_needs_neither_owners_nor_places():
    values, dropout = torch.ones(6, 50), SeededDropout(SEEDS[1:2])
    with dropout:
        dropout.begin([4])
        found = F.dropout(values, 0.5)
    assert torch.equal(found, dropped(values, (4,), of=SEEDS[1:]))


def test_merchants_that_are_done_leave_the_masks_of_others():
    ones = torch.ones(6, 5)
    assert torch.equal(dropped(ones[:4], (1, 2)), dropped(ones, (1, 2, 3))[:4])


def test_gradients_pass_where_values_do():
    values = torch.randn(6, 5, requires_grad=True)
    found = dropped(values, (4,), p=0.25)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    expected = torch.where(found != 0, 1 / 0.75, 0.0)
    torch.testing.assert_close(gradient, expected)
    assert 0 < int((found != 0).sum()) < found.numel()


def test_rate_one_drops_all_and_passes_no_gradient():
    values = torch.ones(4, 5, requires_grad=True)
    found = dropped(values, p=1.0)
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert not found.any() and not gradient.any()


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    values = torch.randn(4, 5)
    module, dropout = torch.nn.Dropout(0.5).eval(), SeededDropout(SEEDS[:1])
    with dropout:
        dropout.begin([0])
        assert module(values) is values
        assert F.dropout(values, 0.0) is values
        assert F.dropout(values, 0.5, training=False) is values


def test_a_call_that_drops_nothing_is_counted_all_the_same():
    """So that a model with one rate set to 0 has the masks of the other calls."""
    ones, dropout = torch.ones(4, 50), SeededDropout(SEEDS[:1])
    with dropout:
        dropout.begin([0])
        F.dropout(ones, 0.0)
        second = F.dropout(ones, 0.5)
    assert torch.equal(second, dropped(ones, calls=2))


def test_in_place_dropout_changes_its_input():
    values = torch.ones(4, 50)
    expected = dropped(values.clone())
    dropout = SeededDropout(SEEDS[:1])
    with dropout:
        dropout.begin([0])
        found = F.dropout(values, 0.5, inplace=True)
    assert found is values and torch.equal(values, expected)


def test_outside_it_torch_draws_as_ever():
    dropped(torch.ones(4, 5))
    with seeds.scope(1):
        first = F.dropout(torch.ones(1000), 0.5)
    with seeds.scope(2):
        second = F.dropout(torch.ones(1000), 0.5)
    assert not torch.equal(first, second)


def test_modules_and_precisions_go_through_it():
    values = torch.ones(4, 50, dtype=torch.bfloat16)
    module, dropout = torch.nn.Dropout(0.5), SeededDropout(SEEDS[:1])
    with dropout:
        dropout.begin([0])
        found = module(values)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), dropped(torch.ones(4, 50)))
