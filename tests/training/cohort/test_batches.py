"""A cohort's batches against each merchant's own."""

import dataclasses

import pytest
import torch

from fed_distill.config import TrainerConfig
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.batches import Batch, PhaseData, joined
from fed_distill.training.preparation import prepare

CPU = torch.device("cpu")


@pytest.fixture
def segments_of(words, merchants, plans):
    """A function: segment ``number`` of the plan fedavg_kd for merchants ordered by falling number of steps."""

    def make(number=0, privacy=None, batch_size=8, sizes=(21, 13, 4)):
        learners = merchants(words(), privacy, sizes)
        return [
            prepare(one, plans.fedavg_kd, TrainerConfig(batch_size=batch_size)).segments[number] for one in learners
        ]

    return make


def examples_of(data, batch, merchant):
    """What one merchant's part of a batch holds: the encoded examples and references that count."""
    counted = batch.index[(batch.owner == merchant) & (batch.mask == 1.0)]
    return {name: values[counted] for name, values in data.encoded.items()}, data.taken(counted)


@pytest.mark.parametrize("even", [False, True], ids=["as drawn", "even"])
@pytest.mark.parametrize("privacy", [None, ExampleDP(1.0, 1.0)], ids=["plain", "private"])
@pytest.mark.parametrize("number", [0, 1], ids=["own examples", "shared examples"])
def test_every_step_holds_each_merchants_own_batch(number, privacy, even, segments_of):
    segments = segments_of(number, privacy, batch_size=3)
    data = PhaseData(segments, CPU)
    assert data.private == (privacy is not None and number == 0)
    for step in range(max(data.steps)):
        active = data.active(step)
        assert active == sum(len(segment.batches) > step for segment in segments)
        batch = data.batch(step, active, even)
        drawn = [len(segment.batches[step]) for segment in segments[:active]]
        assert batch.counted.tolist() == drawn
        assert list(batch.sizes) == ([max(1, *drawn)] * active if even else drawn)
        assert batch.owner.tolist() == [place for place, size in enumerate(batch.sizes) for _ in range(size)]
        assert batch.column.tolist() == [column for size in batch.sizes for column in range(size)]
        assert len(batch.index) == len(batch.mask) == sum(batch.sizes)
        for merchant, segment in enumerate(segments[:active]):
            index = segment.batches[step]
            encoded, references = examples_of(data, batch, merchant)
            for name, values in segment.encoded.items():
                assert torch.equal(encoded[name][:, : values.shape[1]], values[index])
                assert not encoded[name][:, values.shape[1] :].any()
            assert references.keys() == segment.references.keys()
            assert all(torch.equal(references[name], values[index]) for name, values in segment.references.items())


def test_what_all_merchants_share_is_not_copied(segments_of):
    segments = segments_of(1)
    data = PhaseData(segments, CPU)
    assert data.encoded["ids"] is segments[0].encoded["ids"]
    assert data.references["soft_labels"] is segments[0].references["soft_labels"]


def test_equal_examples_with_references_of_their_own_are_not_shared(segments_of):
    first, second, third = segments_of(1)
    other = dataclasses.replace(second, references={"soft_labels": second.references["soft_labels"].flip(0)})
    data = PhaseData([first, other, third], CPU)
    batch = data.batch(0, 3, even=False)
    _, references = examples_of(data, batch, 1)
    assert torch.equal(references["soft_labels"], other.references["soft_labels"][other.batches[0]])


def test_a_filler_is_an_example_that_its_merchant_draws(segments_of):
    segments = segments_of(0, ExampleDP(1.0, 1.0), batch_size=1, sizes=(30, 12, 7))
    data = PhaseData(segments, CPU)
    ends = torch.tensor([len(segment.references["labels"]) for segment in segments]).cumsum(0).tolist()
    fillers = [set(), set(), set()]
    for step in range(max(data.steps)):
        batch = data.batch(step, data.active(step), even=True)
        for merchant in range(len(batch.sizes)):
            fillers[merchant].update(batch.index[(batch.owner == merchant) & (batch.mask == 0.0)].tolist())
    for segment, start, found in zip(segments, [0, *ends], fillers, strict=False):
        drawn = torch.cat(segment.batches) + start
        assert len(found) == 1 and found <= set(drawn.tolist())


def test_a_step_in_which_nobody_draws_anything_is_empty_or_all_padding(segments_of):
    segments = [
        dataclasses.replace(one, batches=(torch.empty(0, dtype=torch.int64),))
        for one in segments_of(0, ExampleDP(1, 1))
    ]
    data = PhaseData(segments, CPU)
    batch = data.batch(0, 3, even=True)
    assert batch.mask.tolist() == [0.0, 0.0, 0.0]
    assert batch.index.tolist() == [0, 21, 34]
    empty = data.batch(0, 3, even=False)
    assert len(empty.index) == len(empty.mask) == 0
    assert list(empty.sizes) == empty.counted.tolist() == [0, 0, 0]


@pytest.mark.parametrize("sizes", [(8, 8), (8, 0, 3)], ids=["even", "as drawn"])
@pytest.mark.parametrize("together", [1, 3, 7, 8, 100])
def test_parts_are_the_whole_in_order(together, sizes):
    count, counted = sum(sizes), torch.tensor(sizes)
    owner = torch.arange(len(sizes)).repeat_interleave(counted)
    column = torch.cat([torch.arange(size) for size in sizes])
    whole = Batch(torch.arange(count), owner, column, (torch.arange(count) % 5 > 0).float(), sizes, counted)
    parts = list(whole.parts(together))
    for merchant, size in enumerate(sizes):
        for name in ("index", "column", "mask"):
            own = [getattr(part, name)[part.owner == merchant] for part in parts]
            assert torch.equal(torch.cat(own), getattr(whole, name)[owner == merchant])
        assert [part.sizes[merchant] for part in parts] == [
            len(range(size)[first : first + together]) for first in range(0, 8, together)
        ]
    for part in parts:
        assert part.owner.tolist() == [place for place, size in enumerate(part.sizes) for _ in range(size)]
        assert max(part.sizes) <= together
        assert torch.equal(part.counted, counted)


@pytest.mark.parametrize("even", [False, True], ids=["as drawn", "even"])
@pytest.mark.parametrize("together", [1, 2, 3, 5, 100])
def test_members_of_the_unit_stay_whole_in_parts_and_padding_is_of_none(together, even, segments_of):
    groups = [torch.arange(21) // 4, torch.zeros(13, dtype=torch.int64), torch.arange(4)]
    segments = [
        dataclasses.replace(one, batches=(torch.arange(size - 1),), groups=own)
        for one, own, size in zip(segments_of(0, ExampleDP(1.0, 1.0)), groups, (21, 13, 4), strict=True)
    ]
    batch = PhaseData(segments, CPU).batch(0, 3, even)
    sizes = torch.bincount(batch.member)
    whole = {(int(owner), int(column)): int(sizes[member]) for owner, column, member in places(batch)}
    seen = []
    for part in batch.parts(together):
        assert part.owner.tolist() == [place for place, size in enumerate(part.sizes) for _ in range(size)]
        assert not even or len(set(part.sizes)) == 1
        member = torch.arange(len(part.index)) if part.member is None else part.member
        assert sorted(set(member.tolist())) == list(range(int(member.max()) + 1))
        of_part = torch.bincount(member)
        for number in range(3):
            own = member[(part.owner == number) & (part.mask == 1.0)]
            assert len(own) <= together or len(own.unique()) == 1
        for counts, key in zip(
            part.mask.tolist(), zip(*(one.tolist() for one in (part.owner, part.column)), strict=True), strict=True
        ):
            seen += [key] * int(counts)
        for place, of in enumerate(member.tolist()):
            key = int(part.owner[place]), int(part.column[place])
            assert int(of_part[of]) == (whole[key] if part.mask[place] else 1)
    assert sorted(seen) == sorted((owner, column) for owner, size in enumerate((20, 12, 3)) for column in range(size))


def places(batch):
    return zip(batch.owner.tolist(), batch.column.tolist(), batch.member.tolist(), strict=True)


def test_joined_matrices_are_padded_with_zeros_to_the_widest():
    parts = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6, 7]])]
    assert joined(parts).tolist() == [[1, 2, 0], [3, 4, 0], [5, 6, 7]]
    assert joined([torch.ones(2, 2), torch.zeros(1, 2)]).tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert joined([torch.tensor([1, 2]), torch.tensor([3])]).tolist() == [1, 2, 3]
    assert joined(parts[:1]) is parts[0]
