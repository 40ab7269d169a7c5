"""Layers with separate weights for each merchant, on a batch with the examples of all of them.

A batch of a cohort is an ordinary batch of concatenated merchants (see ``layout``). Operations between weighted layers
treat examples independently and run unchanged; only layers with weights need the owner of each example. The result is
that of ``torch.func.vmap`` over merchants, with fewer and larger operations, and for models that vmap cannot trace.

For DP, each layer also computes the norm of every example's gradient from its inputs and output gradients, without the
gradient itself ("ghost norms": Goodfellow 2015; Li et al., ICLR 2022, sec. 4), and the clipped sum ("book-keeping": Bu
et al., ICML 2023). Shapes: merchants a, examples of all of them N, positions of an example P, members of the unit M.

Where members have several examples (see ``layout``), a product's gradient is clipped as that of one example with all
positions of the member's, computed in float64. In float32 its norm would need an allowance for rounding that grows with
the square of the number of positions (see ``rounding``), and would no longer be that of the sequential trainer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill.errors import ModelError
from fed_distill.training.cohort.layout import Layout

_AT_A_TIME = 64
"""Number of examples whose gradients are materialised at a time, where that is cheaper than norms only."""

Call = tuple[tuple[Tensor, ...], Tensor]
"""One call of a layer in a forward pass: its inputs, and the output whose gradient is needed."""


class CannotStack(ModelError):
    """A model (or one of its layers) cannot be trained by the cohort trainer; the message says why."""


class StackedLayer(nn.Module, ABC):
    """A layer for several merchants at once; ``weight`` and the like are ``[merchants, ...]``, set from outside.

    ``layout`` has the owner of each example. With ``record`` it stores its calls for per-example gradients; ``forget``
    deletes them.
    """

    needs_even: ClassVar[bool] = False
    """Whether all merchants must have the same number of examples, always."""
    needs_even_recording: ClassVar[bool] = False
    """Whether they must while it records."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.own = tuple(name for name, _ in plain.named_parameters(recurse=False))
        for name in plain._parameters:  # also those that are None, as a bias may be
            self.register_parameter(name, None)
        self.layout = Layout()
        self.calls: list[Call] = []
        self.record = False
        self._found: dict[str, Tensor] = {}
        self.train(plain.training)

    def forget(self) -> None:
        """Drop what was recorded."""
        self.calls.clear()
        self._found = {}

    def clear(self, odd: Tensor) -> None:
        """Make zeros of what flowed into the calls for examples ``odd``, bool ``[N]``."""
        self.calls = [(tuple(self.cleared(one, odd) for one in inputs), output) for inputs, output in self.calls]

    def cleared(self, values: Tensor, odd: Tensor) -> Tensor:
        """What flows into a call or back from it, with zeros for examples ``odd``, bool ``[N]``."""
        return values.masked_fill(odd.view(*odd.shape, *[1] * (values.dim() - 1)), 0)

    def _noted(self, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.record:
            self.calls.append((inputs, output if output.requires_grad else output.requires_grad_()))
        return output

    def _read(self, weight: Tensor) -> Tensor:
        """``weight``, but cut from the graph while calls are kept: an autograd function of our own would compute its
        gradient over all examples in vain."""
        return weight.detach() if self.record else weight

    def _exact(self, flow: Tensor) -> Tensor:
        """``flow`` in the precision in which products of it are clipped."""
        return flow if self.layout.members is None else flow.double()

    def _checked(self, x: Tensor) -> Tensor:
        if len(x) != len(self.layout.owner):
            examples = len(self.layout.owner)
            raise CannotStack(f"a {type(self).__name__} is called with {len(x)} inputs for {examples} examples")
        return x

    @abstractmethod
    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Squared norm of each member's gradient by all weights of this layer, ``[M]``: of the sum over its examples.

        ``gradients`` are the losses' by the outputs of ``calls``, in their order.
        """

    @abstractmethod
    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Each merchant's sum over members of factor times gradient, by own weight, after ``square_norms`` of the same
        ``gradients``; ``factors`` ``[M]``."""


def joined_positions(parts: Sequence[Tensor]) -> Tensor:
    """``[N, P, width]`` of several calls along P; of a single one, itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def by_example(values: Tensor) -> Tensor:
    """``[N, ..., width]`` as ``[N, P, width]``."""
    return values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])


class Linear(StackedLayer):
    """``nn.Linear``, a product for each merchant."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ..., in]`` to ``[N, ..., out]``."""
        self._checked(x)
        product: Any = _Product.apply  # untyped in torch
        bias = None if self.bias is None else self._read(self.bias)
        output: Tensor = product(x.reshape(-1, x.shape[-1]), self._read(self.weight), bias, self.layout)
        return self._noted((x,), output.view(*x.shape[:-1], output.shape[-1]))

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """By the Gram matrices of inputs and gradients where that is less work than the gradients themselves
        (Li et al., ICLR 2022, sec. 4)."""
        x, g = self._flows(gradients)
        norms = self.layout.norms(linear_square_norms, x, g)
        if self.bias is not None:
            self._found = {"bias": self.layout.by_member(g.sum(dim=1))}
            norms = norms + sum_of_squares(self._found)
        return norms

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """A product of clipped gradients and inputs for each merchant."""
        x, g = self._flows(gradients)
        sums = weighted(self._found, factors, self.layout)
        factors = self.layout.to_examples(factors)
        if x.shape[-1] < g.shape[-1]:
            x = x * factors[:, None, None]
        else:
            g = g * factors[:, None, None]
        return {"weight": self.layout.outer(g.flatten(0, 1), x.flatten(0, 1)), **sums}

    def _flows(self, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        g = self._exact(joined_positions([by_example(gradient) for gradient in gradients]))
        return joined_positions([by_example(inputs[0].detach()) for inputs, _ in self.calls]).to(g.dtype), g


class _Product(torch.autograd.Function):
    """``x w^T + b`` for each merchant: x ``[rows, in]``, w ``[a, out, in]``, b ``[a, out]`` or None.

    Torch's own batched product gives the gradient of w transposed in memory, and the optimizer would have to copy it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.layout = layout
        return layout.products(x, weight.transpose(1, 2), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        g, layout = gradients[0].contiguous(), ctx.layout
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            layout.products(g, weight) if of_x else None,
            layout.outer(g, x) if of_weight else None,
            layout.sums(g) if of_bias else None,
            None,
        )


def linear_square_norms(x: Tensor, g: Tensor) -> Tensor:
    """Squared norms ``[N]`` of the example gradients ``g^T x`` of a product, x ``[N, P, in]``, g ``[N, P, out]``, and
    what rounding may have taken of them."""
    positions, size = x.shape[1], x.shape[2] * g.shape[2]
    if positions == 1:
        return x.square().sum(dim=(1, 2)) * g.square().sum(dim=(1, 2))
    slack = rounding(x.shape[2] + g.shape[2] + positions, x) * (lengths(x) * lengths(g)).sum(dim=1).square()
    if 2 * positions**2 <= size:
        gram = torch.bmm(x, x.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
        return gram.sum(dim=(1, 2)).clamp_min(0.0) + slack
    parts = zip(torch.split(x, _AT_A_TIME), torch.split(g, _AT_A_TIME), strict=True)
    return torch.cat([torch.bmm(flow.transpose(1, 2), own).square().sum(dim=(1, 2)) for own, flow in parts]) + slack


def rounding(terms: int, like: Tensor) -> float:
    """Bound on the relative error of a sum of so many products (Higham 2002, sec. 3.1), of their absolute values' sum.

    Where an example's positions cancel, its squared norm may be less than the rounding of what it is a sum of, and 0 or
    negative as computed, while their clipped sum is rounded otherwise. A server that chooses weights for that would
    have an example go unclipped. So a norm is never taken to be less than this share of the lengths that went into it.
    """
    return (terms + 32) * torch.finfo(like.dtype).eps / 2


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean lengths over the last dimension."""
    return vectors.square().sum(dim=-1).sqrt()


class LayerNorm(StackedLayer):
    """``nn.LayerNorm`` over the last dimension, each merchant with its own scale and shift."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.LayerNorm) -> None:
        super().__init__(plain)
        if len(plain.normalized_shape) != 1:
            raise CannotStack("a LayerNorm over several dimensions is not supported")
        self.shape, self.eps = plain.normalized_shape, plain.eps

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ..., width]`` to the same."""
        self._checked(x)
        if x.device.type == "cpu" and x.dtype == self.weight.dtype and self.bias is not None:
            own: Any = _Normalized.apply  # untyped in torch
            return self._noted((x,), own(x, self._read(self.weight), self._read(self.bias), self.layout, self.eps))
        normal = F.layer_norm(x, self.shape, eps=self.eps)
        scale = self.layout.of_examples(self.weight, x)
        if self.bias is None:
            return self._noted((x,), normal * scale)
        return self._noted((x,), torch.addcmul(self.layout.of_examples(self.bias, x), normal, scale))

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """From the gradients themselves, which are only as wide as the layer."""
        self._found = {name: self.layout.by_member(one) for name, one in self._examples(gradients).items()}
        return sum_of_squares(self._found)

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Sums of the gradients."""
        return weighted(self._found, factors, self.layout)

    def _examples(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for (inputs, _), gradient in zip(self.calls, gradients, strict=True):
            g = by_example(gradient)
            x = inputs[0].detach().to(g.dtype)
            parts = {"weight": (g * by_example(F.layer_norm(x, self.shape, eps=self.eps))).sum(dim=1)}
            if self.bias is not None:
                parts["bias"] = g.sum(dim=1)
            total = {name: total[name] + part if total else part for name, part in parts.items()}
        return total


class _Normalized(torch.autograd.Function):
    """Layer norm of each merchant's examples by torch's kernel, x ``[N, ..., width]``, weight and bias ``[a, width]``.

    The kernel scales, shifts and sums gradients in one pass; with scales spread over the whole batch these are passes
    of their own, and a CPU is bound by them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layout: Layout, eps: float) -> Tensor:
        ctx.sizes, ctx.shape = list(layout.sizes), [x.shape[-1]]
        rows = torch.split(x, ctx.sizes)
        found = [
            torch.native_layer_norm(own, ctx.shape, weight[place], bias[place], eps) for place, own in enumerate(rows)
        ]
        output, *moments = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(x, weight, bias, *moments)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        parts = (torch.split(one, ctx.sizes) for one in (gradients[0].contiguous(), x, mean, deviation))
        found = [
            torch.ops.aten.native_layer_norm_backward(g, own, ctx.shape, m, d, weight[place], bias[place], wanted)
            for place, (g, own, m, d) in enumerate(zip(*parts, strict=True))
        ]
        of_x, of_weight, of_bias = zip(*found, strict=True)
        return (
            torch.cat(of_x) if wanted[0] else None,
            torch.stack(of_weight) if wanted[1] else None,
            torch.stack(of_bias) if wanted[2] else None,
            None,
            None,
        )


class Mapped(StackedLayer):
    """Any other layer with weights of its own, mapped over merchants by ``torch.func.vmap``."""

    needs_even = True

    def __init__(self, plain: nn.Module) -> None:
        super().__init__(plain)
        if any(True for _ in plain.buffers(recurse=False)):
            raise CannotStack(f"a {type(plain).__name__} has buffers")
        self._plain = (plain,)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors ``[N, ...]`` to one ``[N, ...]``."""
        weights = {name: getattr(self, name) for name in self.own}
        merchants = len(self.layout.sizes)
        rows = tuple(self._checked(one).reshape(merchants, -1, *one.shape[1:]) for one in inputs)
        output = torch.func.vmap(self._call, randomness="error")(weights, *rows)
        return self._noted(inputs, output.flatten(0, 1))

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """From the gradients themselves; nothing is one of an example of which nothing flows back, also where the layer
        has no slope at what was put in."""
        self._found = {name: self.layout.by_member(one) for name, one in self._examples(gradients).items()}
        return sum_of_squares(self._found)

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Sums of the gradients."""
        return weighted(self._found, factors, self.layout)

    def _call(self, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(self._plain[0], dict(weights), inputs)
        return output

    def _examples(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        weights = {name: getattr(self, name).detach() for name in self.own}
        merchants = len(self.layout.sizes)

        def one(weights: dict[str, Tensor], gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
            pullback: Any = torch.func.vjp(lambda own: self._call(own, *(x.unsqueeze(0) for x in inputs)), weights)[1]
            found: dict[str, Tensor] = pullback(gradient.unsqueeze(0))[0]
            return found

        total: dict[str, Tensor] = {}
        for (inputs, _), gradient in zip(self.calls, gradients, strict=True):
            values = (gradient, *(one.to(gradient.dtype) if one.is_floating_point() else one for one in inputs))
            flows = [value.detach().reshape(merchants, -1, *value.shape[1:]) for value in values]
            examples = torch.func.vmap(one, in_dims=(None, *[0] * len(flows)))
            found = {name: value.flatten(0, 1) for name, value in torch.func.vmap(examples)(weights, *flows).items()}
            total = {name: total[name] + part if total else part for name, part in found.items()}
        silent = torch.stack([(by_example(one) == 0.0).flatten(1).all(dim=1) for one in gradients]).all(dim=0)
        return {name: value.masked_fill(_beside(silent, value), 0.0) for name, value in total.items()}


def _beside(examples: Tensor, values: Tensor) -> Tensor:
    """``[N]`` as ``[N, 1, ...]``, with as many dimensions as ``values``."""
    return examples.view(-1, *[1] * (values.dim() - 1))


def sum_of_squares(members: Mapping[str, Tensor]) -> Tensor:
    """Squared norms ``[M]`` over members' gradients ``[M, ...]`` by weight."""
    return torch.stack([value.flatten(1).square().sum(dim=-1) for value in members.values()]).sum(dim=0)


def weighted(members: Mapping[str, Tensor], factors: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Each merchant's sum over members of factor ``[M]`` times gradient ``[M, ...]``."""
    return {name: layout.member_sums(value * _beside(factors, value)) for name, value in members.items()}
