"""Every stacked layer against a plain module for each merchant, its example gradients against autograd's one by one."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.mobilebert.modeling_mobilebert import NoNorm

from fed_distill.models.bag import WeightedBag
from fed_distill.runtime import seeds
from fed_distill.training.cohort.layers import LSTM, CannotStack, LayerNorm, Linear, Mapped, linear_square_norms
from fed_distill.training.cohort.tables import Bag, Rows, Table, flat_starts, flattened, unflattened

MERCHANTS, EXAMPLES = 3, 4


@dataclass
class Case:
    """A stacked layer, its plain twins, and a way to use either: inputs to a vector for each example."""

    layer: Any
    plain: list[nn.Module]
    inputs: tuple[torch.Tensor, ...]
    own_inputs: tuple[torch.Tensor, ...]
    use: Any
    starts: list[int] | None = None

    def of_merchant(self, values: torch.Tensor, merchant: int) -> torch.Tensor:
        return values[merchant] if self.starts is None else unflattened(values, self.starts, merchant)

    def losses(self) -> torch.Tensor:
        return loss(self.use(self.layer, *self.inputs)).view(MERCHANTS, EXAMPLES)

    def alone(self, merchant: int, example: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One example's loss and its gradient."""
        place = merchant * EXAMPLES + example
        plain = self.plain[merchant]
        one = loss(self.use(plain, *(values[place : place + 1] for values in self.own_inputs)))[0]
        names = [name for name, _ in plain.named_parameters()]
        return one.detach(), dict(zip(names, torch.autograd.grad(one, list(plain.parameters())), strict=True))


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


def stack_case(kind, make, inputs, use=once):
    plain = [randomized(make(), merchant) for merchant in range(MERCHANTS)]
    layer = kind(plain[0])
    for name in layer.own:
        setattr(layer, name, nn.Parameter(torch.stack([getattr(one, name).detach() for one in plain])))
    return Case(layer, plain, inputs, inputs, use)


def table_case(kind, make, fields, use=once):
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
        torch.cat([torch.randint(0, count, (EXAMPLES, places), generator=draw) for count in rows]) for places in fields
    ]
    owner = torch.arange(MERCHANTS).repeat_interleave(EXAMPLES).unsqueeze(1)
    placed = [torch.where(ids > 0, ids + torch.tensor(starts)[owner] - 1, 0) for ids in own]
    layer.trainable = torch.arange(starts[-1]) > 0
    return Case(layer, plain, tuple(placed), tuple(own), use, starts)


N = MERCHANTS * EXAMPLES
CASES = {
    "linear": lambda: stack_case(Linear, lambda: nn.Linear(5, 3), (drawn(N, 5),)),
    "linear without bias": lambda: stack_case(Linear, lambda: nn.Linear(5, 3, bias=False), (drawn(N, 5),)),
    "linear, few positions": lambda: stack_case(Linear, lambda: nn.Linear(6, 5), (drawn(N, 3, 6),)),
    "linear, many positions": lambda: stack_case(Linear, lambda: nn.Linear(3, 2), (drawn(N, 6, 3),)),
    "linear, no bias, many positions": lambda: stack_case(
        Linear, lambda: nn.Linear(3, 2, bias=False), (drawn(N, 6, 3),)
    ),
    "linear, two dimensions of positions": lambda: stack_case(Linear, lambda: nn.Linear(3, 2), (drawn(N, 2, 3, 3),)),
    "linear twice": lambda: stack_case(Linear, lambda: nn.Linear(4, 4), (drawn(N, 4),), twice),
    "linear twice over positions": lambda: stack_case(Linear, lambda: nn.Linear(4, 4), (drawn(N, 3, 4),), twice),
    "norm": lambda: stack_case(LayerNorm, lambda: nn.LayerNorm(5), (drawn(N, 5),)),
    "norm without bias": lambda: stack_case(LayerNorm, lambda: nn.LayerNorm(5, bias=False), (drawn(N, 3, 5),)),
    "norm twice": lambda: stack_case(LayerNorm, lambda: nn.LayerNorm(5), (drawn(N, 3, 5),), twice),
    "recurrence": lambda: stack_case(LSTM, lambda: nn.LSTM(3, 2, batch_first=True), (drawn(N, 4, 3),), states),
    "recurrence twice": lambda: stack_case(
        LSTM, lambda: nn.LSTM(3, 2, batch_first=True), (drawn(N, 4, 3),), states_twice
    ),
    "any other": lambda: stack_case(Mapped, lambda: NoNorm(5), (drawn(N, 3, 5),)),
    "any other twice": lambda: stack_case(Mapped, lambda: NoNorm(5), (drawn(N, 3, 5),), twice),
    "any other of two inputs": lambda: stack_case(Mapped, Gate, (drawn(N, 2, 3), drawn(N, 3, seed=1))),
    "convolution": lambda: stack_case(Mapped, lambda: nn.Conv1d(2, 3, 2), (drawn(N, 2, 5),)),
    "rows": lambda: stack_case(Rows, lambda: nn.Embedding(4, 3), (ids(N, 5, high=4),)),
    "rows with padding": lambda: stack_case(Rows, lambda: nn.Embedding(4, 3, padding_idx=2), (ids(N, 5, high=4),)),
    "one row each": lambda: stack_case(Rows, lambda: nn.Embedding(4, 3, padding_idx=0), (ids(N, high=4),)),
    "rows called twice": lambda: stack_case(
        Rows, lambda: nn.Embedding(4, 3), (ids(N, 5, high=4), ids(N, 2, high=4, seed=1)), bags_of_rows
    ),
    "table": lambda: table_case(Table, lambda rows: nn.Embedding(rows, 3, padding_idx=0), (6,)),
    "table twice": lambda: table_case(
        Table,
        lambda rows: nn.Embedding(rows, 3, padding_idx=0),
        (6, 3),
        lambda layer, *both: bags_of_rows(layer, *both),
    ),
    "bag": lambda: table_case(Bag, lambda rows: WeightedBag(rows, 3), (6,)),
    "bag twice": lambda: table_case(Bag, lambda rows: WeightedBag(rows, 3), (8, 5), bags),
}


def ids(*shape, high, seed=0):
    return torch.randint(0, high, shape, generator=seeds.torch_stream(seed))


def bags_of_rows(layer, text, pair):
    first, second = layer(text).sum(dim=1), layer(pair).sum(dim=1)
    return torch.cat([first, second, first * second], dim=1)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def examples_of(case):
    found = [[case.alone(merchant, example) for example in range(EXAMPLES)] for merchant in range(MERCHANTS)]
    return SimpleNamespace(
        losses=torch.stack([torch.stack([one for one, _ in row]) for row in found]),
        gradients=[[gradient for _, gradient in row] for row in found],
    )


def check_sums(case, found, expected, factors):
    for merchant in range(MERCHANTS):
        for name, values in found.items():
            total = sum(
                float(factor) * one[name]
                for factor, one in zip(factors[merchant], expected.gradients[merchant], strict=True)
            )
            close(case.of_merchant(values, merchant), total)


@pytest.mark.parametrize("record", [False, True], ids=["plain", "recorded"])
def test_each_merchant_gets_its_own_outputs_and_gradients(case, record):
    case.layer.record = record
    expected = examples_of(case)
    losses = case.losses()
    close(losses, expected.losses)
    weights = {name: getattr(case.layer, name) for name in case.layer.own}
    found = dict(zip(weights, torch.autograd.grad(losses.sum(), list(weights.values())), strict=True))
    check_sums(case, found, expected, torch.ones(MERCHANTS, EXAMPLES))
    assert bool(case.layer.calls) == record


def flows_of(case):
    """Losses' gradients by the outputs of the recorded calls."""
    case.layer.record = True
    losses = case.losses()
    return torch.autograd.grad(losses.sum(), [output for _, output in case.layer.calls], retain_graph=True)


def square(gradient):
    return sum(value.square().sum() for value in gradient.values())


def test_norms_are_those_of_each_examples_gradient(case):
    found = case.layer.square_norms(flows_of(case), MERCHANTS)
    close(found, torch.stack([torch.stack([square(one) for one in row]) for row in examples_of(case).gradients]))


def test_clipped_sums_are_those_of_each_examples_gradient(case):
    factors = torch.rand(MERCHANTS, EXAMPLES, generator=seeds.torch_stream(9), dtype=torch.float64)
    factors[1, 2] = 0.0
    flows = flows_of(case)
    case.layer.square_norms(flows, MERCHANTS)
    sums = case.layer.clipped_sums(flows, factors)
    assert sums.keys() == set(case.layer.own)
    check_sums(case, sums, examples_of(case), factors)


@pytest.mark.parametrize("name", ["table", "table twice", "bag", "bag twice"])
def test_rows_that_may_not_change_count_for_nothing(name):
    case = CASES[name]()
    case.layer.trainable = case.layer.trainable & (torch.arange(len(case.layer.trainable)) % 3 > 0)
    flows = flows_of(case)
    allowed = [case.of_merchant(case.layer.trainable, merchant) for merchant in range(MERCHANTS)]
    expected = examples_of(case)
    for merchant, row in enumerate(expected.gradients):
        for gradient in row:
            for value in gradient.values():
                value[~allowed[merchant]] = 0.0
    found = case.layer.square_norms(flows, MERCHANTS)
    close(found, torch.stack([torch.stack([square(one) for one in row]) for row in expected.gradients]))
    factors = torch.rand(MERCHANTS, EXAMPLES, generator=seeds.torch_stream(9), dtype=torch.float64)
    check_sums(case, case.layer.clipped_sums(flows, factors), expected, factors)


@settings(max_examples=40, deadline=None)
@given(
    merchants=st.integers(1, 3),
    examples=st.integers(1, 3),
    positions=st.integers(1, 6),
    fan_in=st.integers(1, 6),
    fan_out=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_norms_of_products_of_any_shape(merchants, examples, positions, fan_in, fan_out, seed):
    x = drawn(merchants, examples, positions, fan_in, seed=seed)
    g = drawn(merchants, examples, positions, fan_out, seed=seed + 1)
    gradients = torch.einsum("abpo,abpi->aboi", g, x)
    torch.testing.assert_close(linear_square_norms(x, g), gradients.square().sum(dim=(2, 3)), rtol=1e-9, atol=1e-10)


def test_norms_whose_terms_cancel_are_not_below_zero():
    x = torch.tensor([[[[1.0, 1e-4], [1.0, 1e-4]]]]).repeat(1, 1, 1, 8)
    g = torch.tensor([[[[3.3], [-3.3]]]]).repeat(1, 1, 1, 8)
    assert linear_square_norms(x, g).tolist() == [[pytest.approx(0.0, abs=1e-4)]]
    assert float(linear_square_norms(x, g)) >= 0.0


def test_what_was_recorded_can_be_forgotten():
    case = CASES["norm twice"]()
    flows = flows_of(case)
    case.layer.square_norms(flows, MERCHANTS)
    assert len(case.layer.calls) == 2
    case.layer.forget()
    assert case.layer.calls == []


@pytest.mark.parametrize(
    ("kind", "plain", "reason"),
    [
        (LayerNorm, nn.LayerNorm((2, 3)), "several dimensions"),
        (LSTM, nn.LSTM(3, 2), "batch first"),
        (LSTM, nn.LSTM(3, 2, num_layers=2, batch_first=True), "one layer"),
        (LSTM, nn.LSTM(3, 2, bidirectional=True, batch_first=True), "one direction"),
        (LSTM, nn.LSTM(3, 2, bias=False, batch_first=True), "biases"),
        (Mapped, nn.BatchNorm1d(3), "buffers"),
        (Rows, nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (Table, nn.Embedding(4, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (Table, nn.Embedding(4, 3, sparse=True), "sparse"),
    ],
)
def test_what_cannot_be_stacked_is_refused(kind, plain, reason):
    with pytest.raises(CannotStack, match=reason):
        kind(plain)


def test_rows_asked_for_once_for_all_examples_are_refused():
    case = CASES["rows"]()
    with pytest.raises(CannotStack, match=r"asked for \(1, 5\) rows"):
        case.layer(torch.arange(5).clamp_max(3).unsqueeze(0))


def test_flat_tables_give_back_each_merchants_rows():
    tables = [torch.cat([torch.zeros(1, 2), drawn(count - 1, 2, seed=count).float()]) for count in (3, 1, 5)]
    starts = flat_starts([3, 1, 5])
    assert starts == [1, 3, 3, 7]
    assert flattened(tables).shape == (7, 2)
    for merchant, table in enumerate(tables):
        assert torch.equal(unflattened(flattened(tables), starts, merchant), table)
