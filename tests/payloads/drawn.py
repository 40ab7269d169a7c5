"""Payloads that hypothesis draws: honest ones of one small round, and any that a message can hold."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping

import numpy as np
import torch
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fed_distill.payloads
from fed_distill.data.examples import Examples
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context, Payload
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes

PROXY, CLASSES = 11, 3
CONTEXT = Context(
    {
        "table": torch.arange(24.0).reshape(6, 4),
        "bias": torch.ones(3),
        "half": torch.ones(2, 2, dtype=torch.float16),
        "steps": torch.tensor(3),
    },
    PROXY,
    CLASSES,
    fields=2,
)
"""A round of a student with a table, a bias, a matrix in half precision and a counter, 11 proxy examples, 3 classes,
and pairs of texts."""


def every_kind():
    """All kinds of payloads of the library, whose modules are found and imported."""
    package = fed_distill.payloads
    found = []
    for module in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{module.name}"
        members = vars(importlib.import_module(name)).values()
        found += [
            one for one in members if isinstance(one, type) and issubclass(one, Payload) and one.__module__ == name
        ]
    return tuple(kind for kind in found if kind is not Payload)


KINDS = every_kind()


def over_the_wire(content):
    """As another process would get it: serialized to bytes and parsed again."""
    sent = recorddict_to_proto(content)
    return recorddict_from_proto(type(sent).FromString(sent.SerializeToString()))


def same(one, other):
    """Whether two payloads, or what they consist of, are equal bit for bit, NaN included."""
    if type(one) is not type(other):
        return isinstance(one, Mapping) and isinstance(other, Mapping) and same(dict(one), dict(other))
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    fields = dataclasses.fields(one)
    return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields)


def tensors(dtype, shape, elements=None):
    """Tensors of one type and shape."""
    return hnp.arrays(dtype, shape, elements=elements).map(lambda value: torch.from_numpy(np.array(value)))


def floats(dtype, *shape):
    """Finite numbers of a usual size."""
    width = 8 * np.dtype(dtype).itemsize
    return tensors(dtype, shape, st.floats(-1000, 1000, width=width))


@st.composite
def honest_weights(draw):
    """Some weights of the round's student."""
    kinds = {"table": (np.float32, 6, 4), "bias": (np.float32, 3), "half": (np.float16, 2, 2)}
    chosen = draw(st.sets(st.sampled_from([*kinds, "steps"]), min_size=1))
    arrays = {name: draw(floats(*kind)) for name, kind in kinds.items() if name in chosen}
    return arrays | ({"steps": torch.tensor(draw(st.integers(0, 2**40)))} if "steps" in chosen else {})


@st.composite
def honest_update(draw):
    """How far some of its weights moved, the table whole or in part."""
    shapes = {"table": (6, 4), "bias": (3,), "half": (2, 2)}
    whole = draw(st.sets(st.sampled_from([*shapes]), min_size=1))
    arrays, rows, counts = {name: draw(floats(np.float32, *shapes[name])) for name in sorted(whole)}, {}, {}
    if "table" in whole and draw(st.booleans()):
        chosen = sorted(draw(st.sets(st.integers(0, 5))))
        rows["table"] = torch.tensor(chosen, dtype=torch.int64)
        counts["table"] = draw(tensors(np.int64, len(chosen), st.integers(0, 2**31 - 1)))
        arrays["table"] = draw(floats(np.float32, len(chosen), 4))
    return PartialWeights(arrays, rows, counts)


@st.composite
def honest_factors(draw):
    """An update, its table as factors of rank 1 or 2, of all rows or of three, or as it is."""
    update = draw(honest_update())
    if "table" not in update.arrays or len(update.arrays["table"]) < 3:
        return LowRankUpdate(update)
    rows, rank = len(update.arrays["table"]), draw(st.integers(1, 2 if len(update.arrays["table"]) == 6 else 1))
    plain = {name: value for name, value in update.arrays.items() if name != "table"}
    thin, wide = draw(floats(np.float32, rank, rows)), draw(floats(np.float32, rank, 4))
    return LowRankUpdate(PartialWeights(plain, update.rows, update.counts), {"table": thin}, {"table": wide})


def probabilities(rows):
    """Of each of ``rows`` examples, in any precision."""
    kinds = st.sampled_from([torch.float16, torch.float32, torch.float64])
    positive = tensors(np.float64, (rows, CLASSES), st.floats(1e-3, 1.0))
    return st.builds(lambda values, kind: (values / values.sum(dim=1, keepdim=True)).to(kind), positive, kinds)


@st.composite
def honest_prototypes(draw):
    """Of some classes, in any width up to the table's rows."""
    present = draw(tensors(np.bool_, CLASSES))
    means = draw(floats(np.float32, CLASSES, draw(st.integers(1, 6))))
    return Prototypes(torch.where(present.unsqueeze(1), means, 0.0), present)


MASKS = tensors(np.bool_, PROXY)
OUTPUTS = [[0, 1, 2], [0, 0, 2], [-1, 1, 2], [2, 2, 2]]
"""Outputs of three classes: of each, of two bins, of two candidates, and of one."""


@st.composite
def honest_labels(draw):
    """Distinct pairs of any texts, with one of the outputs of each as label."""
    text = st.text(st.characters(codec="utf-8"))
    pairs = draw(st.lists(st.tuples(text, text), min_size=1, max_size=5, unique=True))
    outputs = [draw(st.sampled_from(OUTPUTS)) for _ in pairs]
    labels = [draw(st.sampled_from(sorted({*row} - {-1}))) for row in outputs]
    none = np.full(len(pairs), -1)
    examples = Examples(*map(tuple, zip(*pairs, strict=True)), none, none, ("Nord",) * len(pairs))
    return ReleasedLabels.of(examples, torch.tensor(labels), torch.tensor(outputs))


HONEST = {
    StudentUpdate: honest_update().map(StudentUpdate.of),
    StudentWeights: honest_weights().map(StudentWeights),
    SoftLabels: probabilities(PROXY).map(SoftLabels),
    SelectedSoftLabels: MASKS.flatmap(
        lambda mask: st.builds(SelectedSoftLabels, probabilities(int(mask.sum())), st.just(mask))
    ),
    DensitySelectedSoftLabels: MASKS.flatmap(
        lambda mask: st.builds(DensitySelectedSoftLabels, probabilities(int(mask.sum())), st.just(mask))
    ),
    ExpertSoftLabels: MASKS.flatmap(
        lambda mask: st.builds(
            ExpertSoftLabels, probabilities(int(mask.sum())), st.just(mask), tensors(np.uint8, int(mask.sum()))
        )
    ),
    Votes: tensors(np.int64, PROXY, st.integers(0, CLASSES - 1)).map(Votes),
    ClassMeans: st.builds(
        lambda values, present: ClassMeans(values * present.unsqueeze(1), present),
        probabilities(CLASSES),
        tensors(np.bool_, CLASSES),
    ),
    ControlVariate: honest_weights()
    .map(lambda weights: ControlVariate({name: value for name, value in weights.items() if name != "steps"}))
    .filter(lambda one: one.arrays),
    LowRankUpdate: honest_factors(),
    ReleasedLabels: honest_labels(),
    Prototypes: honest_prototypes(),
    LocalSteps: st.integers(1, 2**31).map(LocalSteps.of),
}
"""What an honest merchant may send, or a server, in the round of ``CONTEXT``, by kind."""

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_])
TENSORS = DTYPES.flatmap(lambda dtype: tensors(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
NAMES = st.text(min_size=1, max_size=8)
WEIGHTS = st.dictionaries(NAMES, TENSORS, max_size=3)


@st.composite
def any_partial(draw):
    """Weights of any names, types and shapes, of the first of which some rows are there."""
    arrays = draw(WEIGHTS)
    rows = torch.tensor(draw(st.lists(st.integers(0, 2**31 - 1), max_size=5)), dtype=torch.int64)
    of_tables = dict.fromkeys(list(arrays)[: draw(st.integers(0, 1))], rows)
    return PartialWeights(arrays, of_tables, of_tables)


LABELS = tensors(np.float32, (3, 2))
ANY = {
    StudentUpdate: any_partial().map(StudentUpdate.of),
    StudentWeights: WEIGHTS.map(StudentWeights),
    SoftLabels: st.builds(SoftLabels, LABELS),
    SelectedSoftLabels: st.builds(SelectedSoftLabels, LABELS, tensors(np.bool_, st.integers(0, 40))),
    DensitySelectedSoftLabels: st.builds(DensitySelectedSoftLabels, LABELS, tensors(np.bool_, st.integers(0, 40))),
    ExpertSoftLabels: st.builds(ExpertSoftLabels, LABELS, tensors(np.bool_, st.integers(0, 40)), TENSORS),
    Votes: tensors(np.int64, 3, st.integers(-(2**40), 2**40)).map(Votes),
    ClassMeans: st.builds(ClassMeans, tensors(np.float32, (2, 2)), tensors(np.bool_, 2)),
    ControlVariate: WEIGHTS.map(ControlVariate),
    LowRankUpdate: st.builds(LowRankUpdate, any_partial(), WEIGHTS, WEIGHTS),
    LocalSteps: TENSORS.map(LocalSteps),
    ReleasedLabels: st.builds(ReleasedLabels, TENSORS, *(tensors(np.int16, (2, 3)),) * 4),
    Prototypes: st.builds(Prototypes, TENSORS, tensors(np.bool_, 2)),
}
"""What a message can hold, whether it fits a round or not, by kind."""


@st.composite
def several(draw):
    """Any payloads of several kinds, as one message may hold them: soft labels of all examples or of some."""
    exclusive = (SoftLabels, SelectedSoftLabels, DensitySelectedSoftLabels, ExpertSoftLabels)
    one = draw(st.sampled_from(exclusive))
    kinds = draw(
        st.lists(st.sampled_from([kind for kind in KINDS if kind is one or kind not in exclusive]), unique=True)
    )
    return tuple(draw(ANY[kind]) for kind in kinds)
