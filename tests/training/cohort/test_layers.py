"""Every stacked layer against a plain module for each merchant, its example gradients against autograd's one by one;
with as many examples of each merchant and with different numbers, one of them none."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from fed_distill import seeds
from fed_distill.models.bag import WeightedBag
from fed_distill.training.cohort.layers import (
    CannotStack,
    LayerNorm,
    Linear,
    Mapped,
    lengths,
    linear_square_norms,
)
from fed_distill.training.cohort.lstm import StackedLSTM
from fed_distill.training.cohort.tables import (
    Bag,
    Rows,
    StackedTable,
    TableLayer,
    flat_starts,
    flattened,
    same_row_products,
    unflattened,
)

MERCHANTS, N = 3, 12
LAYOUTS = {"even": (4, 4, 4), "uneven": (7, 0, 5)}


@dataclass
class Case:
    """A stacked layer, its plain twins, and a way to use either: inputs to a vector for each example."""

    layer: Any
    plain: list[nn.Module]
    inputs: tuple[torch.Tensor, ...]
    own_inputs: tuple[torch.Tensor, ...]
    use: Any
    sizes: tuple[int, ...]
    starts: list[int] | None = None

    def __post_init__(self) -> None:
        self.layer.layout.set(self.sizes, owners(self.sizes))

    def of_merchant(self, values: torch.Tensor, merchant: int) -> torch.Tensor:
        return values[merchant] if self.starts is None else unflattened(values, self.starts, merchant)

    def losses(self) -> torch.Tensor:
        return loss(self.use(self.layer, *self.inputs))

    def alone(self, place: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One example's loss and its gradient."""
        plain = self.plain[owners(self.sizes)[place]]
        one = loss(self.use(plain, *(values[place : place + 1] for values in self.own_inputs)))[0]
        names = [name for name, _ in plain.named_parameters()]
        return one.detach(), dict(zip(names, torch.autograd.grad(one, list(plain.parameters())), strict=True))


def owners(sizes):
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def loss(vectors):
    """Neither linear nor the same for any two entries."""
    return (vectors.square() * torch.linspace(0.5, 1.5, vectors.shape[1], dtype=vectors.dtype)).sum(dim=1) + vectors[
        :, 0
    ].sin()


def flat(values):
    return values.flatten(1)


def once(layer, *inputs):
    return flat(layer(*inputs))


def twice(layer, x):
    """The second call has other positions, and reads what the first gave."""
    first = layer(x)
    second = layer(0.5 * x[:, :2] + 0.1) if x.dim() == 3 else layer(x.flip(-1) + 0.1 * first.sum(-1, keepdim=True))
    return torch.cat([flat(first), 2.0 * flat(second)], dim=1)


def states(layer, x):
    return flat(layer(x)[0])


def states_twice(layer, x):
    ahead = layer(x)[0]
    return torch.cat([flat(ahead), flat(layer(x.flip(1))[0])], dim=1)


def bags(layer, text, pair):
    first, second = layer(text), layer(pair)
    return torch.cat([first, second, first * second], dim=1)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeds.torch_stream(seed), dtype=torch.float64)


def randomized(module, seed):
    """The module in float64, with weights of its own that are nowhere 0 or 1."""
    module = module.double()
    for number, (_, value) in enumerate(module.named_parameters()):
        value.data = 0.5 * drawn(*value.shape, seed=100 * seed + number) + 0.3
    return module


class Gate(nn.Module):
    """A layer of one's own with two inputs, of which one has positions."""

    def __init__(self):
        super().__init__()
        self.mixing, self.shift = nn.Parameter(torch.empty(3, 3)), nn.Parameter(torch.empty(3))

    def forward(self, values, gate):
        return (values @ self.mixing + self.shift).tanh() * gate.unsqueeze(1)


def stack_case(sizes, kind, make, inputs, use=once):
    plain = [randomized(make(), merchant) for merchant in range(MERCHANTS)]
    layer = kind(plain[0])
    for name in layer.own:
        setattr(layer, name, nn.Parameter(torch.stack([getattr(one, name).detach() for one in plain])))
    return Case(layer, plain, inputs, inputs, use, sizes)


def table_case(sizes, kind, make, fields, use=once):
    """Merchants with tables of 7, 4 and 9 rows; ``fields``: positions looked up in each call."""
    rows = (7, 4, 9)
    plain = [randomized(make(count), merchant) for merchant, count in enumerate(rows)]
    starts = flat_starts(rows)
    layer = kind(plain[0])
    for one in plain:
        for _, value in one.named_parameters():
            value.data[0] = 0.0
    for name in layer.own:
        setattr(layer, name, nn.Parameter(flattened([getattr(one, name).detach() for one in plain])))
    draw = seeds.torch_stream(5)
    own = [
        torch.cat(
            [torch.randint(0, count, (size, places), generator=draw) for count, size in zip(rows, sizes, strict=True)]
        )
        for places in fields
    ]
    owner = owners(sizes).unsqueeze(1)
    placed = [torch.where(ids > 0, ids + torch.tensor(starts)[owner] - 1, 0) for ids in own]
    layer.trainable = torch.arange(starts[-1]) > 0
    return Case(layer, plain, tuple(placed), tuple(own), use, sizes, starts)


CASES = {
    "linear": lambda sizes: stack_case(sizes, Linear, lambda: nn.Linear(5, 3), (drawn(N, 5),)),
    "linear without bias": lambda sizes: stack_case(sizes, Linear, lambda: nn.Linear(5, 3, bias=False), (drawn(N, 5),)),
    "linear, few positions": lambda sizes: stack_case(sizes, Linear, lambda: nn.Linear(6, 5), (drawn(N, 3, 6),)),
    "linear, many positions": lambda sizes: stack_case(sizes, Linear, lambda: nn.Linear(3, 2), (drawn(N, 6, 3),)),
    "linear, no bias, many positions": lambda sizes: stack_case(
        sizes, Linear, lambda: nn.Linear(3, 2, bias=False), (drawn(N, 6, 3),)
    ),
    "linear, two dimensions of positions": lambda sizes: stack_case(
        sizes, Linear, lambda: nn.Linear(3, 2), (drawn(N, 2, 3, 3),)
    ),
    "linear twice": lambda sizes: stack_case(sizes, Linear, lambda: nn.Linear(4, 4), (drawn(N, 4),), twice),
    "linear twice over positions": lambda sizes: stack_case(
        sizes, Linear, lambda: nn.Linear(4, 4), (drawn(N, 3, 4),), twice
    ),
    "norm": lambda sizes: stack_case(sizes, LayerNorm, lambda: nn.LayerNorm(5), (drawn(N, 5),)),
    "norm without bias": lambda sizes: stack_case(
        sizes, LayerNorm, lambda: nn.LayerNorm(5, bias=False), (drawn(N, 3, 5),)
    ),
    "norm twice": lambda sizes: stack_case(sizes, LayerNorm, lambda: nn.LayerNorm(5), (drawn(N, 3, 5),), twice),
    "recurrence": lambda sizes: stack_case(
        sizes, StackedLSTM, lambda: nn.LSTM(3, 2, batch_first=True), (drawn(N, 4, 3),), states
    ),
    "recurrence twice": lambda sizes: stack_case(
        sizes, StackedLSTM, lambda: nn.LSTM(3, 2, batch_first=True), (drawn(N, 4, 3),), states_twice
    ),
    "any other": lambda sizes: stack_case(sizes, Mapped, lambda: NoNorm(5), (drawn(N, 3, 5),)),
    "any other twice": lambda sizes: stack_case(sizes, Mapped, lambda: NoNorm(5), (drawn(N, 3, 5),), twice),
    "any other of two inputs": lambda sizes: stack_case(sizes, Mapped, Gate, (drawn(N, 2, 3), drawn(N, 3, seed=1))),
    "convolution": lambda sizes: stack_case(sizes, Mapped, lambda: nn.Conv1d(2, 3, 2), (drawn(N, 2, 5),)),
    "rows": lambda sizes: stack_case(sizes, Rows, lambda: nn.Embedding(4, 3), (ids(N, 5, high=4),)),
    "rows with padding": lambda sizes: stack_case(
        sizes, Rows, lambda: nn.Embedding(4, 3, padding_idx=2), (ids(N, 5, high=4),)
    ),
    "one row each": lambda sizes: stack_case(sizes, Rows, lambda: nn.Embedding(4, 3, padding_idx=0), (ids(N, high=4),)),
    "rows called twice": lambda sizes: stack_case(
        sizes, Rows, lambda: nn.Embedding(4, 3), (ids(N, 5, high=4), ids(N, 2, high=4, seed=1)), bags_of_rows
    ),
    "table": lambda sizes: table_case(sizes, StackedTable, lambda rows: nn.Embedding(rows, 3, padding_idx=0), (6,)),
    "table twice": lambda sizes: table_case(
        sizes,
        StackedTable,
        lambda rows: nn.Embedding(rows, 3, padding_idx=0),
        (6, 3),
        lambda layer, *both: bags_of_rows(layer, *both),
    ),
    "bag": lambda sizes: table_case(sizes, Bag, lambda rows: WeightedBag(rows, 3), (6,)),
    "bag twice": lambda sizes: table_case(sizes, Bag, lambda rows: WeightedBag(rows, 3), (8, 5), bags),
}


def ids(*shape, high, seed=0):
    return torch.randint(0, high, shape, generator=seeds.torch_stream(seed))


def bags_of_rows(layer, text, pair):
    first, second = layer(text).sum(dim=1), layer(pair).sum(dim=1)
    return torch.cat([first, second, first * second], dim=1)


def supported(recording):
    """Each case in each layout that its layer can compute."""
    found = []
    for name, make in CASES.items():
        kind = type(make(LAYOUTS["even"]).layer)
        needs_even = kind.needs_even or (recording and kind.needs_even_recording)
        found += [pytest.param((name, layout), id=f"{name}-{layout}") for layout in list(LAYOUTS)[: 2 - needs_even]]
    return found


def made(name, layout="even"):
    return CASES[name](LAYOUTS[layout])


@pytest.fixture
def case(request):
    return made(*request.param)


plain = pytest.mark.parametrize("case", supported(recording=False), indirect=True)
recorded = pytest.mark.parametrize("case", supported(recording=True), indirect=True)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def examples_of(case):
    """Losses and gradients of the examples one by one, merchant after merchant."""
    losses, gradients = zip(*(case.alone(place) for place in range(N)), strict=True)
    return SimpleNamespace(losses=torch.stack(losses), gradients=gradients)


def assert_sums(case, found, expected, factors):
    owner = owners(case.sizes).tolist()
    for merchant in range(MERCHANTS):
        for name, values in found.items():
            own = case.of_merchant(values, merchant)
            total = torch.zeros_like(own)
            for place, gradient in enumerate(expected.gradients):
                if owner[place] == merchant:
                    total += float(factors[place]) * gradient[name]
            assert_close(own, total)


@plain
def test_each_merchant_gets_its_own_outputs_and_gradients(case):
    expected = examples_of(case)
    losses = case.losses()
    assert_close(losses, expected.losses)
    weights = {name: getattr(case.layer, name) for name in case.layer.own}
    found = dict(zip(weights, torch.autograd.grad(losses.sum(), list(weights.values())), strict=True))
    assert_sums(case, found, expected, torch.ones(N))
    assert not case.layer.calls


@recorded
def test_recording_changes_no_output(case):
    case.layer.record = True
    assert_close(case.losses(), examples_of(case).losses)
    assert case.layer.calls


def flows_of(case):
    """Losses' gradients by the outputs of the recorded calls."""
    case.layer.record = True
    losses = case.losses()
    return torch.autograd.grad(losses.sum(), [output for _, output in case.layer.calls], retain_graph=True)


def squares(gradients):
    return torch.stack([sum(value.square().sum() for value in one.values()) for one in gradients])


def drawn_factors():
    factors = torch.rand(N, generator=seeds.torch_stream(9), dtype=torch.float64)
    factors[5] = 0.0
    return factors


@recorded
def test_norms_are_those_of_each_examples_gradient(case):
    assert_close(case.layer.square_norms(flows_of(case)), squares(examples_of(case).gradients))


@recorded
def test_clipped_sums_are_those_of_each_examples_gradient(case):
    flows, factors = flows_of(case), drawn_factors()
    case.layer.square_norms(flows)
    sums = case.layer.clipped_sums(flows, factors)
    assert sums.keys() == set(case.layer.own)
    assert_sums(case, sums, examples_of(case), factors)


MEMBERS = {"even": (0, 0, 1, 0, 2, 3, 3, 3, 4, 4, 4, 4), "uneven": (0, 1, 0, 0, 2, 0, 1, 3, 3, 4, 3, 3)}
"""Of which member each of a layout's examples is; a merchant with one member, and members of 1 to 4 examples."""


@recorded
def test_norms_and_clipped_sums_may_be_of_several_examples_together(case):
    of = torch.tensor(MEMBERS["even" if case.sizes == LAYOUTS["even"] else "uneven"])
    case.layer.layout.set(case.sizes, owners(case.sizes), of)
    flows, factors = flows_of(case), drawn_factors()[1 : 1 + int(of.max()) + 1]
    each, together = examples_of(case), []
    for member in range(len(factors)):
        own = [each.gradients[place] for place in range(N) if of[place] == member]
        together.append({name: sum(one[name] for one in own) for name in own[0]})
    assert_close(case.layer.square_norms(flows), squares(together))
    assert_sums(case, case.layer.clipped_sums(flows, factors), each, factors[of])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["table", "table twice", "bag", "bag twice"])
def test_rows_that_may_not_change_count_for_nothing(name, layout):
    case = made(name, layout)
    case.layer.trainable = case.layer.trainable & (torch.arange(len(case.layer.trainable)) % 3 > 0)
    flows, factors = flows_of(case), drawn_factors()
    expected = examples_of(case)
    for merchant, gradient in zip(owners(case.sizes).tolist(), expected.gradients, strict=True):
        for value in gradient.values():
            value[~case.of_merchant(case.layer.trainable, merchant)] = 0.0
    assert_close(case.layer.square_norms(flows), squares(expected.gradients))
    assert_sums(case, case.layer.clipped_sums(flows, factors), expected, factors)


@settings(max_examples=40, deadline=None)
@given(
    examples=st.integers(1, 70),
    positions=st.integers(1, 6),
    fan_in=st.integers(1, 6),
    fan_out=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_norms_of_products_of_any_shape(examples, positions, fan_in, fan_out, seed):
    x = drawn(examples, positions, fan_in, seed=seed)
    g = drawn(examples, positions, fan_out, seed=seed + 1)
    gradients = torch.einsum("npo,npi->noi", g, x)
    found, slack = linear_square_norms(x, g), 1e-5 * (x.norm(dim=2) * g.norm(dim=2)).sum(dim=1).square()
    exact = gradients.square().sum(dim=(1, 2))
    assert bool(((found >= exact * (1.0 - 1e-5)) & (found <= exact * (1.0 + 1e-5) + slack)).all())


def test_norms_whose_terms_cancel_are_not_below_zero():
    x = torch.tensor([[[1.0, 1e-4], [1.0, 1e-4]]]).repeat(1, 1, 8)
    g = torch.tensor([[[3.3], [-3.3]]]).repeat(1, 1, 8)
    assert 0.0 < float(linear_square_norms(x, g)) < 1e-5 * float(x.square().sum() * g.square().sum())


@settings(max_examples=60, deadline=None)
@given(
    positions=st.integers(2, 8),
    width=st.integers(1, 16),
    apart=st.sampled_from([1e-1, 1e-3, 1e-5, 1e-7, 0.0]),
    seed=st.integers(0, 1000),
)
def test_no_rounding_lets_a_gradient_go_unclipped(positions, width, apart, seed):
    """Positions that nearly cancel: the norm that is computed is mostly rounding, and the sum is rounded otherwise."""
    x = drawn(1, 1, width, seed=seed) + apart * drawn(1, positions, width, seed=seed + 1)
    flow = drawn(1, 1, width, seed=seed + 2)
    g = flow - flow.roll(1, dims=2) * 1e-9 + apart * drawn(1, positions, width, seed=seed + 3)
    g[:, 1::2] *= -1.0
    if positions % 2:
        g[:, -1] = 0.0
    norm = linear_square_norms(x, g).sqrt()
    clipped = torch.einsum("npo,npi->noi", g / norm, x)
    assert float(clipped.double().norm()) <= 1.001
    ids = torch.ones(1, positions, dtype=torch.int64)
    norm = same_row_products(ids, g, ids > 0).sqrt()
    assert float((g / norm).sum(dim=1).double().norm()) <= 1.001


def alone(kind, plain, examples):
    """A float32 layer of one merchant whose ``examples`` are one member, and which records."""
    layer = kind(plain)
    for name, value in plain.named_parameters():
        own = value.detach() if issubclass(kind, TableLayer) else value.detach().unsqueeze(0)
        setattr(layer, name, nn.Parameter(own.clone()))
    layer.trainable = torch.arange(3) > 0
    of = torch.zeros(examples, dtype=torch.int64)
    layer.layout.set((examples,), of, of)
    layer.record = True
    return layer


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([Linear, StackedLSTM, LayerNorm, StackedTable, Rows, Bag]),
    examples=st.sampled_from([2, 3, 8, 40]),
    positions=st.integers(1, 4),
    apart=st.sampled_from([1e-1, 1e-3, 1e-5, 1e-7, 0.0]),
    seed=st.integers(0, 1000),
)
def test_no_rounding_lets_a_member_whose_examples_cancel_go_unclipped(kind, examples, positions, apart, seed):
    """Nor does it have one clipped by more than its norm asks for, however many examples it has."""
    width, turned = 6, torch.where(torch.arange(examples) % 2 > 0, -1.0, 1.0).view(-1, 1, 1)
    flow = (turned * (drawn(1, 1, width, seed=seed) + apart * drawn(examples, positions, width, seed=seed + 1))).float()
    x = (drawn(1, 1, width, seed=seed + 2) + apart * drawn(examples, positions, width, seed=seed + 3)).float()
    ids, flow = torch.ones(examples, positions, dtype=torch.int64), 1e3 * flow
    if kind is Linear:
        layer = alone(kind, nn.Linear(width, width), examples)
        layer(x)
        flows = [flow]
    elif kind is StackedLSTM:
        layer = alone(kind, nn.LSTM(width, width, batch_first=True), examples)
        layer(x)
        flows = [flow[:, time].repeat(1, 4).unsqueeze(0) for time in range(positions)]
    elif kind is LayerNorm:
        layer = alone(kind, nn.LayerNorm(width), examples)
        layer(x)
        flows = [flow]
    elif kind is Bag:
        layer = alone(kind, WeightedBag(3, width), examples)
        layer(ids)
        flows = [flow[:, 0]]
    else:
        layer = alone(kind, nn.Embedding(3, width, padding_idx=0), examples)
        layer(ids)
        flows = [flow]
    norm = layer.square_norms(flows).float().sqrt()
    sums = layer.clipped_sums(flows, (1.0 / norm).nan_to_num(posinf=1.0))
    length = math.sqrt(sum(float(one.double().square().sum()) for one in sums.values()))
    assert length <= 1.001
    rounded = 1e-5 * float(lengths(x).max() * lengths(flow).sum())  # below it the allowance for rounding shows
    assert length >= 0.999 or float(norm) < rounded


def test_what_was_recorded_can_be_forgotten():
    case = made("norm twice")
    case.layer.square_norms(flows_of(case))
    assert len(case.layer.calls) == 2
    case.layer.forget()
    assert case.layer.calls == []


@pytest.mark.parametrize(
    ("kind", "plain", "reason"),
    [
        (LayerNorm, nn.LayerNorm((2, 3)), "several dimensions"),
        (StackedLSTM, nn.LSTM(3, 2), "batch first"),
        (StackedLSTM, nn.LSTM(3, 2, num_layers=2, batch_first=True), "one layer"),
        (StackedLSTM, nn.LSTM(3, 2, bidirectional=True, batch_first=True), "one direction"),
        (StackedLSTM, nn.LSTM(3, 2, bias=False, batch_first=True), "biases"),
        (Mapped, nn.BatchNorm1d(3), "buffers"),
        (Rows, nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (StackedTable, nn.Embedding(4, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (StackedTable, nn.Embedding(4, 3, sparse=True), "sparse"),
    ],
)
def test_what_cannot_be_stacked_is_refused(kind, plain, reason):
    with pytest.raises(CannotStack, match=reason):
        kind(plain)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inputs", [1, N - 1, N * 2])
@pytest.mark.parametrize("name", ["linear, few positions", "norm twice", "rows", "table", "bag"])
def test_a_layer_called_with_another_number_of_inputs_than_examples_is_refused(name, inputs, layout):
    case = made(name, layout)
    x = case.inputs[0]
    kind = type(case.layer).__name__
    with pytest.raises(CannotStack, match=f"a {kind} is called with {inputs} inputs for {N} examples"):
        case.layer(torch.cat([x, x])[:inputs])


@pytest.mark.parametrize("name", ["recurrence", "any other of two inputs"])
def test_so_is_one_that_needs_as_many_examples_of_each_merchant(name):
    case = made(name)
    with pytest.raises(CannotStack, match=f"is called with {N - MERCHANTS} inputs for {N} examples"):
        case.layer(*(x[: N - MERCHANTS] for x in case.inputs))


def test_flat_tables_give_back_each_merchants_rows():
    tables = [torch.cat([torch.zeros(1, 2), drawn(count - 1, 2, seed=count).float()]) for count in (3, 1, 5)]
    starts = flat_starts([3, 1, 5])
    assert starts == [1, 3, 3, 7]
    assert flattened(tables).shape == (7, 2)
    for merchant, table in enumerate(tables):
        assert torch.equal(unflattened(flattened(tables), starts, merchant), table)
