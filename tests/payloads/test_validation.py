"""Payloads that do not fit their round are refused, and it is said why."""

import pytest
import torch

from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context, smallest_integers
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import LONGEST, MOST_BYTES, MOST_EXAMPLES, ReleasedLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from tests.payloads.drawn import KINDS

CURRENT = {"table": torch.zeros(6, 2), "bias": torch.zeros(3)}
PROXY = (4, 2)
CONTEXT = Context(CURRENT, *PROXY)
NAN, INF = float("nan"), float("inf")
SOME = torch.tensor([True, False, False, True])
MOST = torch.tensor([255, 0], dtype=torch.uint8)
HALVES = torch.full(PROXY, 0.5)


def moved(table=None, rows=(0, 2, 5), bias=None, counts=None):
    arrays = {"table": torch.ones(3, 2) if table is None else table, "bias": torch.ones(3) if bias is None else bias}
    used = torch.tensor(rows).abs() if counts is None else counts
    return StudentUpdate(arrays, {"table": torch.tensor(rows, dtype=torch.int64)}, {"table": used})


def means(rows=((0.25, 0.75), (0.0, 0.0)), present=(True, False)):
    return ClassMeans(torch.tensor(rows), torch.tensor(present))


def update(thin=None, wide=None, bias=None, rows=(0, 2, 5), names=("table", "table")):
    """An update of rank 1 of some rows of the table, and the bias as it is."""
    rows = torch.tensor(rows)
    plain = PartialWeights({"bias": torch.ones(3) if bias is None else bias}, {"table": rows}, {"table": rows.abs()})
    thin, wide = torch.ones(1, 3) if thin is None else thin, torch.ones(1, 2) if wide is None else wide
    return LowRankUpdate(plain, {names[0]: thin}, {names[1]: wide})


def prototypes(given=None, present=(True, True)):
    return Prototypes(torch.ones(2, 2) if given is None else given, torch.tensor(present) > 0)


def released(text=b"tentshoes", lengths=(4, 5), places=((0,), (1,)), labels=(1, 0), outputs=((-1, 1), (0, 1))):
    whole = (torch.tensor(one) for one in (lengths, places, labels, outputs))
    whole = (one if one.is_floating_point() else smallest_integers(one) for one in whole)
    return ReleasedLabels(torch.tensor([*text], dtype=torch.uint8), *whole)


MANY = torch.zeros(MOST_EXAMPLES + 1, dtype=torch.int8)
ACCEPTED = {
    "released labels": released(),
    "a released label that says nothing": released(outputs=((1, 1), (0, 0))),
    "update in part": moved(),
    "update whole": StudentUpdate(dict(CURRENT)),
    "no row of a table": moved(table=torch.ones(0, 2), rows=[]),
    "update of one weight": StudentUpdate({"bias": torch.ones(3)}),
    "soft labels": SoftLabels(HALVES),
    "soft labels in half precision": SoftLabels(HALVES.half()),
    "answers to some examples": SelectedSoftLabels(torch.full((2, 2), 0.5), SOME),
    "answers to none": SelectedSoftLabels(torch.zeros(0, 2), torch.zeros(4, dtype=torch.bool)),
    "answers by density": DensitySelectedSoftLabels(torch.full((2, 2), 0.5), SOME),
    "answers of an expert": ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, MOST),
    "answers of no expert": ExpertSoftLabels(torch.zeros(0, 2), torch.zeros(4, dtype=torch.bool), MOST[:0]),
    "votes": Votes(torch.tensor([0, 1, 1, 0])),
    "class means": means(),
    "control variate": ControlVariate({"bias": torch.ones(3)}),
    "low-rank update": update(),
    "steps": LocalSteps.of(2**31),
    "prototypes": prototypes(),
    "wide prototypes": prototypes(torch.ones(2, 6)),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_payload_that_fits_the_round_is_accepted(case):
    assert ACCEPTED[case].check_shape(CONTEXT) is None
    assert ACCEPTED[case].validate(CONTEXT) is None


OF_OTHER_SHAPES = {
    "pairs of texts": (
        released(places=((0, 1), (1, 1))),
        r"places of released labels have shape \[2, 2\], not \[2, 1\]",
    ),
    "labels of fewer texts": (released(labels=(1,)), r"places of released labels have shape \[2, 1\], not \[1, 1\]"),
    "a label alone": (released(labels=1, places=((0,),)), r"labels of released labels have shape \[\], not \[1\]"),
    "outputs of more classes": (
        released(outputs=((0, 1, 2), (0, 1, 2))),
        r"outputs of released labels have shape \[2, 3\], not \[2, 2\]",
    ),
    "labels as shares": (released(labels=(0.5, NAN)), "labels of released labels are torch.float32"),
    "texts as numbers": (
        ReleasedLabels(*(torch.zeros(shape, dtype=torch.int64) for shape in (3, 1, (1, 1), 1, (1, 2)))),
        "text of released labels are torch.int64, not integers of a message",
    ),
    "lengths as a table": (released(lengths=((4,), (5,))), r"lengths of released labels have shape \[2, 1\], not"),
    "too many labels": (
        ReleasedLabels(MANY[:0].to(torch.uint8), MANY[:1], MANY.unsqueeze(1), MANY, torch.stack([MANY, MANY], dim=1)),
        f"there are {MOST_EXAMPLES + 1} released labels, not from 1 to {MOST_EXAMPLES}",
    ),
    "no label": (
        ReleasedLabels(
            MANY[:0].to(torch.uint8), MANY[:0], MANY[:0].unsqueeze(1), MANY[:0], torch.ones(0, 2).to(MANY.dtype)
        ),
        f"there are 0 released labels, not from 1 to {MOST_EXAMPLES}",
    ),
    "control variate of another shape": (ControlVariate({"bias": torch.ones(4)}), r"bias has shape \[4\]"),
    "control variate of another type": (
        ControlVariate({"bias": torch.ones(3, dtype=torch.int64)}),
        "bias is torch.int64, not torch.float32",
    ),
    "prototypes of more classes": (prototypes(torch.ones(3, 2)), r"shapes \[3, 2\] and \[2\], not \[2, width\]"),
    "prototypes of no width": (prototypes(torch.ones(2, 0)), r"shapes \[2, 0\] and \[2\]"),
    "prototypes wider than any weight": (prototypes(torch.ones(2, 7)), "with a width of at most 6"),
    "presence of more classes": (prototypes(present=[1, 1, 0]), r"shapes \[2, 2\] and \[3\]"),
    "prototypes as counts": (
        prototypes(torch.ones(2, 2, dtype=torch.int64)),
        "prototypes have types torch.int64 and torch.bool",
    ),
    "steps one by one": (
        LocalSteps(torch.tensor([1, 1])),
        r"steps is torch.int64 \[2\], not torch.int64 \[1\]",
    ),
    "steps as a share": (LocalSteps(torch.tensor([1.0])), r"number of steps is torch.float32 \[1\]"),
    "control variate of what is unknown": (ControlVariate({"door": torch.ones(3)}), "weight 'door' is unknown"),
    "factors of other rows": (update(thin=torch.ones(1, 4)), r"factors of table have shapes \[1, 4\] and \[1, 2\]"),
    "factors of other ranks": (update(thin=torch.ones(2, 3)), r"factors of table have shapes \[2, 3\] and \[1, 2\]"),
    "factors of a large product": (
        update(thin=torch.ones(1, 10**6), wide=torch.ones(1, 10**6), rows=list(range(10**6))),
        "factors of table have shapes",
    ),
    "factors of a vector": (update(names=("bias", "bias")), "are missing, or sent twice"),
    "factors of what is unknown": (update(names=("door", "door")), "factors of door have shapes"),
    "one factor": (update(names=("table", "bias")), "are missing, or sent twice"),
    "factors in another precision": (
        update(thin=torch.ones(1, 3, dtype=torch.float64)),
        "factors of table must be float32, not torch.float64 and torch.float32",
    ),
    "update of another shape": (update(bias=torch.ones(4)), r"bias has shape \[4\], not \[3\]"),
    "update of another type": (update(bias=torch.ones(3).half()), "bias is torch.float16, not torch.float32"),
    "weights of another shape": (StudentWeights({"bias": torch.ones(4)}), r"bias has shape \[4\], not \[3\]"),
    "shape": (moved(bias=torch.ones(4)), r"bias has shape \[4\], not \[3\]"),
    "table shape": (moved(table=torch.ones(3, 3)), r"table has shape \[3, 3\], not \[3, 2\]"),
    "fewer rows": (moved(table=torch.ones(2, 2)), r"table has shape \[2, 2\], not \[3, 2\]"),
    "nothing": (StudentUpdate({}), "it has no weights"),
    "extra": (StudentUpdate({**CURRENT, "door": torch.ones(1)}), "weight 'door' is unknown"),
    "type": (moved(bias=torch.ones(3, dtype=torch.float64)), "bias is torch.float64, not torch.float32"),
    "too many rows": (moved(table=torch.ones(7, 2), rows=list(range(7))), "table has rows of the wrong shape"),
    "rows of a matrix": (moved(rows=[[0, 1, 2]]), r"table has rows of the wrong shape \[1, 3\]"),
    "label shape": (SoftLabels(torch.full((2, 4), 0.25)), r"soft labels have shape \[2, 4\], not \[4, 2\]"),
    "vote shape": (Votes(torch.zeros(3, dtype=torch.int64)), r"votes have shape \[3\], not \[4\]"),
    "votes as probabilities": (Votes(HALVES), r"votes have shape \[4, 2\], not \[4\]"),
    "vote type": (Votes(torch.tensor([0.0, 1.0, NAN, 0.0])), "votes are torch.float32, not torch.int64"),
    "fewer answers than said": (
        SelectedSoftLabels(torch.full((1, 2), 0.5), SOME),
        r"soft labels have shape \[1, 2\], not \[2, 2\]",
    ),
    "all answers though few are said": (
        SelectedSoftLabels(HALVES, SOME),
        r"soft labels have shape \[4, 2\], not \[2, 2\]",
    ),
    "answered of another proxy set": (SelectedSoftLabels(HALVES, SOME[:3]), r"answered has shape \[3\], not \[4\]"),
    "fewer answers by density than said": (
        DensitySelectedSoftLabels(torch.full((1, 2), 0.5), SOME),
        r"soft labels have shape \[1, 2\], not \[2, 2\]",
    ),
    "fewer expert answers than said": (
        ExpertSoftLabels(torch.full((1, 2), 0.5), SOME, MOST),
        r"soft labels have shape \[1, 2\], not \[2, 2\]",
    ),
    "less expertise than answers": (
        ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, MOST[:1]),
        r"expertise is torch.uint8 of shape \[1\], not torch.uint8 of shape \[2\]",
    ),
    "expertise of all examples": (
        ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, torch.zeros(4, dtype=torch.uint8)),
        r"expertise is torch.uint8 of shape \[4\], not torch.uint8 of shape \[2\]",
    ),
    "expertise as a matrix": (
        ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, MOST.reshape(2, 1)),
        r"expertise is torch.uint8 of shape \[2, 1\], not",
    ),
    "expertise above 1 or nan": (
        ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, torch.tensor([1.5, NAN])),
        r"expertise is torch.float32 of shape \[2\], not torch.uint8",
    ),
    "expertise below 0": (
        ExpertSoftLabels(torch.full((2, 2), 0.5), SOME, torch.tensor([-1, 1], dtype=torch.int8)),
        r"expertise is torch.int8 of shape \[2\], not torch.uint8",
    ),
    "means of more classes": (
        means(torch.eye(3).tolist()),
        r"class means have shapes \[3, 3\] and \[2\], not \[2, 2\] and \[2\]",
    ),
}
"""What no site takes from a server either."""

OF_OTHER_VALUES = {
    "texts longer than stated": (released(lengths=(4, 4)), "the texts of released labels have 9 bytes, not the stated"),
    "texts shorter than stated": (released(lengths=(4, 2**62)), "the texts of released labels have 9 bytes"),
    "lengths whose sum overflows": (
        released(lengths=(2**62, 2**62, 2**62, 2**62 + 9)),
        "9 bytes, not the stated lengths",
    ),
    "a negative length": (released(lengths=(10, -1)), "9 bytes, not the stated lengths"),
    "a text that was not sent": (released(places=((0,), (2,))), "refer to other texts than the 2 that were sent"),
    "a text before the first": (released(places=((0,), (-1,))), "refer to other texts than the 2 that were sent"),
    "an overlong text": (
        released(text=b"t" * (LONGEST + 1) + b"shoes", lengths=(LONGEST + 1, 5)),
        f"the texts of a released label have {LONGEST + 1} bytes, more than {LONGEST}",
    ),
    "an output that is no class": (released(outputs=((-1, 1), (0, 2))), "outputs must be classes from 0 to 1, or -1"),
    "an output below all classes": (released(outputs=((-2, 1), (0, 1))), "outputs must be classes from 0 to 1, or -1"),
    "classes that stand for each other": (released(outputs=((1, 0), (0, 1))), "for another class, and not for itself"),
    "a class that stands for none": (released(outputs=((1, -1), (0, 1))), "for another class, and not for itself"),
    "a label that is no output": (released(labels=(0, 0)), "a released label is none of the outputs of its example"),
    "a label that is no class": (released(labels=(1, 7)), "a released label is none of the outputs of its example"),
    "a label of an example without outputs": (
        released(labels=(-1, 0), outputs=((-1, -1), (0, 1))),
        "none of the outputs",
    ),
    "an example twice": (released(places=((1,), (1,))), "released labels have a text or an example twice"),
    "a text twice": (released(text=b"tenttent", lengths=(4, 4)), "released labels have a text or an example twice"),
    "no text": (released(text=b"tent\xff\xfeoes"), "the texts of released labels are not UTF-8"),
    "half a character": (released(text="tenté   ".encode(), lengths=(5, 4)), "are not UTF-8"),
    "control variate nan": (ControlVariate({"bias": torch.full((3,), NAN)}), "bias has values that are not"),
    "prototype nan": (prototypes(torch.full((2, 2), NAN)), "prototypes have values that are not finite, or above"),
    "prototype far away": (prototypes(torch.full((2, 2), -2e6)), "not finite, or above 1e\\+06"),
    "prototype of an absent class": (prototypes(present=[True, False]), "a class without examples are not 0"),
    "no step": (LocalSteps.of(0), "number of steps must be from 1 to 2147483648, not 0"),
    "steps backwards": (LocalSteps.of(-4), "number of steps must be from 1 to 2147483648, not -4"),
    "steps without end": (LocalSteps.of(2**31 + 1), "number of steps must be from 1 to 2147483648, not 2147483649"),
    "factors nan": (update(wide=torch.tensor([[1.0, NAN]])), "table has values that are not finite"),
    "update infinite": (update(bias=torch.tensor([1.0, INF, 1.0])), "bias has values that are not finite"),
    "update of a row too large": (update(rows=[0, 2, 6]), "row numbers of table are out of range"),
    "nan": (moved(bias=torch.tensor([1.0, NAN, 1.0])), "bias has values that are not finite"),
    "infinite": (moved(table=torch.tensor([[1.0, -INF]] * 3)), "table has values that are not finite"),
    "row too large": (moved(rows=[0, 2, 6]), "row numbers of table are out of range or not sorted"),
    "row negative": (moved(rows=[-1, 2, 5]), "row numbers of table are out of range"),
    "rows unsorted": (moved(rows=[2, 0, 5]), "row numbers of table are out of range or not sorted"),
    "row twice": (moved(rows=[0, 2, 2]), "row numbers of table are out of range or not sorted"),
    "rows alone": (StudentUpdate(dict(CURRENT), {"door": torch.tensor([0])}), "row numbers of 'door' have no values"),
    "counts missing": (StudentUpdate(moved().arrays, moved().rows), "counts of table are missing"),
    "counts negative": (moved(counts=torch.tensor([1, -1, 1])), "counts of table are missing, negative"),
    "counts of other rows": (moved(counts=torch.tensor([1, 1])), "counts of table are missing, negative or of"),
    "counts of a table sent whole": (
        StudentUpdate(dict(CURRENT), {}, {"table": torch.ones(6, dtype=torch.int64)}),
        "counts of 'table' have no row numbers",
    ),
    "label sum": (SoftLabels(torch.full(PROXY, 0.6)), "soft labels do not sum to 1"),
    "label negative": (SoftLabels(torch.tensor([[1.5, -0.5]] * 4)), "soft labels must be finite, non-negative"),
    "label nan": (SoftLabels(torch.full(PROXY, NAN)), "soft labels must be finite"),
    "label integers": (SoftLabels(torch.tensor([[1, 0]] * 4)), "non-negative floating-point numbers"),
    "some labels nan": (SelectedSoftLabels(torch.full((2, 2), NAN), SOME), "soft labels must be finite"),
    "some labels sum": (SelectedSoftLabels(torch.full((2, 2), 0.6), SOME), "soft labels do not sum to 1"),
    "some labels integers": (
        SelectedSoftLabels(torch.tensor([[1, 0]] * 2), SOME),
        "non-negative floating-point numbers",
    ),
    "labels by density nan": (DensitySelectedSoftLabels(torch.full((2, 2), NAN), SOME), "soft labels must be finite"),
    "expert labels nan": (ExpertSoftLabels(torch.full((2, 2), NAN), SOME, MOST), "soft labels must be finite"),
    "expert labels sum": (ExpertSoftLabels(torch.full((2, 2), 0.6), SOME, MOST), "soft labels do not sum to 1"),
    "vote for no class": (Votes(torch.tensor([0, 1, 2, 0])), "votes must be classes from 0 to 1"),
    "vote negative": (Votes(torch.tensor([0, -1, 1, 0])), "votes must be classes from 0 to 1"),
    "means as counts": (means(((1, 0), (0, 0))), "class means have types torch.int64 and torch.bool"),
    "numbers of examples": (means(present=[7, 0]), "class means have types torch.float32 and torch.int64"),
    "mean nan": (means(((NAN, 0.75), (0.0, 0.0))), "class means are negative or not finite"),
    "mean negative": (means(((1.25, -0.25), (0.0, 0.0))), "class means are negative or not finite"),
    "mean sum": (means(((0.5, 0.75), (0.0, 0.0))), "class means do not sum to 1"),
    "mean of an absent class": (means(((0.25, 0.75), (0.5, 0.5))), "or to 0 for a class without examples"),
}
"""What a merchant may not send, though its shapes fit."""


FROM_MERCHANTS = [*(one for one in OF_OTHER_SHAPES if one != "weights of another shape"), *OF_OTHER_VALUES]


@pytest.mark.parametrize("case", FROM_MERCHANTS)
def test_a_payload_that_does_not_fit_the_round_is_refused_and_it_is_said_why(case):
    unfit, message = {**OF_OTHER_SHAPES, **OF_OTHER_VALUES}[case]
    with pytest.raises(ValueError, match=message):
        unfit.validate(CONTEXT)


@pytest.mark.parametrize("case", OF_OTHER_SHAPES)
def test_a_payload_of_another_shape_is_refused_from_a_server_too(case):
    unfit, message = OF_OTHER_SHAPES[case]
    with pytest.raises(ValueError, match=message):
        unfit.check_shape(CONTEXT)


@pytest.mark.parametrize("case", OF_OTHER_VALUES)
def test_the_shape_alone_says_nothing_of_values(case):
    assert OF_OTHER_VALUES[case][0].check_shape(CONTEXT) is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not StudentWeights])
def test_of_every_kind_shapes_and_values_are_tried(kind):
    for cases in (OF_OTHER_SHAPES, OF_OTHER_VALUES):
        assert any(type(unfit) is kind for unfit, _ in cases.values())
    assert any(type(one) is kind for one in ACCEPTED.values())


def test_a_text_counts_in_each_of_its_examples():
    """A long query in many pairs is short in a message, and long for a tokenizer."""
    pairs = Context(CURRENT, *PROXY, fields=2)
    count, query = 512, MOST_BYTES // 512

    def of(length):
        titles = [f"{number:03}".encode() for number in range(count)]
        places = torch.tensor([[0, number + 1] for number in range(count)], dtype=torch.int16)
        lengths = torch.tensor([length, *(3 for _ in titles)], dtype=torch.int32)
        text = torch.tensor([*(b"q" * length + b"".join(titles))], dtype=torch.uint8)
        return ReleasedLabels(text, lengths, places, MANY[:count], torch.stack([MANY[:count], MANY[:count] + 1], dim=1))

    of(query - 3).validate(pairs)
    with pytest.raises(ValueError, match=f"have more than {MOST_BYTES} bytes in all examples"):
        of(query).validate(pairs)


def test_factors_of_a_rank_that_saves_nothing_are_refused():
    large = Context({"table": torch.zeros(40, 30)}, *PROXY)

    def of_rank(rank):
        factors = {"table": torch.ones(rank, 40)}, {"table": torch.ones(rank, 30)}
        return LowRankUpdate(PartialWeights({}), *factors)

    of_rank(17).validate(large)  # 17 * (40 + 30) < 40 * 30
    with pytest.raises(ValueError, match="factors of table have rank 18, which is too large"):
        of_rank(18).validate(large)
