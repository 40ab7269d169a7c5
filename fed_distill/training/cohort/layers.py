"""Layers whose weights differ from merchant to merchant, on a batch that holds the examples of all of them.

A batch of a cohort is an ordinary batch, merchants after one another, each with the same number of (padded) examples.
All that a model does between its weighted layers treats examples independently, so it runs unchanged; only layers
with weights must know whose example is whose. This is what ``torch.func.vmap`` over merchants would compute, in fewer
and larger operations, and for models that vmap cannot trace.

For DP each layer also gives the norm of every example's gradient from what flows in and out of it, without that
gradient ("ghost norms": Goodfellow 2015; Li et al., ICLR 2022, sec. 4), and the clipped sum ("book-keeping": Bu et
al., ICML 2023). Shapes: merchants a, examples of a merchant B, positions of an example P.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill.errors import ModelError

Call = tuple[tuple[Tensor, ...], Tensor]
"""One use of a layer in a forward pass: what flowed in, and the tensor whose gradient is needed."""


class CannotStack(ModelError):
    """A model (or one of its layers) cannot be trained by the cohort trainer; the message says why."""


class StackedLayer(nn.Module):
    """A layer for several merchants at once; ``weight`` and the like are ``[merchants, ...]``, set from outside.

    ``record`` makes it keep its calls for per-example gradients; ``forget`` drops them.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.own = tuple(name for name, _ in plain.named_parameters(recurse=False))
        for name in self.own:
            self.register_parameter(name, None)
        self.calls: list[Call] = []
        self.record = False
        self._found: dict[str, Tensor] = {}
        self.train(plain.training)

    def forget(self) -> None:
        """Drop what was recorded."""
        self.calls.clear()
        self._found = {}

    def _noted(self, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.record:
            self.calls.append((inputs, output))
        return output

    def square_norms(self, gradients: Sequence[Tensor], merchants: int) -> Tensor:
        """Squared norm of each example's gradient by all weights of this layer, ``[merchants, examples]``.

        ``gradients`` are the losses' by the outputs of ``calls``, in their order.
        """
        raise NotImplementedError

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Each merchant's sum over examples of factor times gradient, by own weight, after ``square_norms`` of the same
        ``gradients``; ``factors`` ``[a, B]``."""
        raise NotImplementedError


def joined_positions(parts: Sequence[Tensor]) -> Tensor:
    """``[a, B, P, width]`` of several calls along P; of a single one, itself."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def by_example(values: Tensor, merchants: int) -> Tensor:
    """``[a * B, ..., width]`` as ``[a, B, P, width]``."""
    return values.reshape(merchants, len(values) // merchants, -1, values.shape[-1])


class Linear(StackedLayer):
    """``nn.Linear`` as one batched product."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """``[a * B, ..., in]`` to ``[a * B, ..., out]``."""
        rows = x.reshape(len(self.weight), -1, x.shape[-1])
        output: Tensor = _Product.apply(rows, self.weight, self.bias)
        return self._noted((x,), output.view(*x.shape[:-1], output.shape[-1]))

    def square_norms(self, gradients: Sequence[Tensor], merchants: int) -> Tensor:
        """By the Gram matrices of inputs and gradients where that is less work than the gradients themselves
        (Li et al., ICLR 2022, sec. 4)."""
        x, g = self._flows(gradients, merchants)
        norms = linear_square_norms(x, g)
        if self.bias is not None:
            norms = norms + g.sum(dim=2).square().sum(dim=-1)
        return norms

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """One batched product of clipped gradients and inputs."""
        x, g = self._flows(gradients, len(factors))
        g = g * factors[:, :, None, None]
        sums = {"weight": torch.bmm(g.flatten(1, 2).transpose(1, 2), x.flatten(1, 2))}
        if self.bias is not None:
            sums["bias"] = g.sum(dim=(1, 2))
        return sums

    def _flows(self, gradients: Sequence[Tensor], merchants: int) -> tuple[Tensor, Tensor]:
        g = joined_positions([by_example(gradient, merchants) for gradient in gradients])
        x = joined_positions([by_example(inputs[0].detach(), merchants) for inputs, _ in self.calls])
        return x.to(g.dtype), g


class _Product(torch.autograd.Function):
    """``x w^T + b`` for each merchant: x ``[a, N, in]``, w ``[a, out, in]``, b ``[a, out]`` or None.

    Torch's own batched product gives the gradient of w transposed in memory, and the optimizer would have to copy it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return torch.bmm(x, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (g,) = gradients
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(g, weight.to(g.dtype)) if of_x else None,
            torch.bmm(g.transpose(1, 2), x.to(g.dtype)) if of_weight else None,
            g.sum(dim=1) if of_bias else None,
        )


def linear_square_norms(x: Tensor, g: Tensor) -> Tensor:
    """Squared norms ``[a, B]`` of the example gradients ``g^T x`` of a product, x ``[a, B, P, in]``, g
    ``[a, B, P, out]``."""
    positions, size = x.shape[2], x.shape[3] * g.shape[3]
    if positions == 1:
        return x.square().sum(dim=(2, 3)) * g.square().sum(dim=(2, 3))
    if 2 * positions**2 <= size:
        gram = torch.matmul(x, x.transpose(2, 3)).mul_(torch.matmul(g, g.transpose(2, 3)))
        return gram.sum(dim=(2, 3)).clamp_min(0.0)
    parts = [
        torch.matmul(g_one.transpose(1, 2), x_one).square().sum(dim=(1, 2)) for x_one, g_one in zip(x, g, strict=True)
    ]
    return torch.stack(parts)


class LayerNorm(StackedLayer):
    """``nn.LayerNorm`` over the last dimension, each merchant with its own scale and shift."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.LayerNorm) -> None:
        super().__init__(plain)
        if len(plain.normalized_shape) != 1:
            raise CannotStack("a LayerNorm over several dimensions")
        self.shape, self.eps = plain.normalized_shape, plain.eps

    def forward(self, x: Tensor) -> Tensor:
        """``[a * B, ..., width]`` to the same."""
        merchants = len(self.weight)
        normal = F.layer_norm(x, self.shape, eps=self.eps).view(merchants, -1, x.shape[-1])
        if self.bias is None:
            output = normal * self.weight.unsqueeze(1)
        else:
            output = torch.addcmul(self.bias.unsqueeze(1), normal, self.weight.unsqueeze(1))
        return self._noted((x,), output.view(x.shape))

    def square_norms(self, gradients: Sequence[Tensor], merchants: int) -> Tensor:
        """From the example gradients themselves, which are only as wide as the layer."""
        self._found = self._examples(gradients, merchants)
        return sum_of_squares(self._found)

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Sums of the example gradients."""
        return weighted(self._found, factors)

    def _examples(self, gradients: Sequence[Tensor], merchants: int) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for (inputs, _), gradient in zip(self.calls, gradients, strict=True):
            g = by_example(gradient, merchants)
            x = inputs[0].detach().to(g.dtype)
            normal = by_example(F.layer_norm(x, self.shape, eps=self.eps), merchants)
            parts = {"weight": (g * normal).sum(dim=2)}
            if self.bias is not None:
                parts["bias"] = g.sum(dim=2)
            total = {name: total[name] + part if total else part for name, part in parts.items()}
        return total


class LSTM(StackedLayer):
    """A one-layer, one-direction ``nn.LSTM``; the state that it returns is None, since nothing here reads it.

    On a CPU each merchant goes through torch's own kernel; on a GPU, or when example gradients are wanted, all
    merchants go through one loop over time.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(self, plain: nn.LSTM) -> None:
        super().__init__(plain)
        if plain.num_layers != 1 or plain.bidirectional or plain.proj_size or not plain.bias or not plain.batch_first:
            raise CannotStack("an LSTM that is not one layer, one direction, batch first and with biases")
        self.width = plain.hidden_size

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """``[a * B, length, in]`` to the states ``[a * B, length, width]`` and None."""
        merchants = len(self.weight_ih_l0)
        if x.is_cuda or self.record:
            return self._scan(x, merchants), None
        rows = x.view(merchants, -1, *x.shape[1:]).unbind()
        weights = zip(*(getattr(self, name).unbind() for name in self.own), strict=True)
        start = x.new_zeros(1, len(rows[0]), self.width)
        kernel: Any = torch.lstm
        outputs = [
            kernel(one, (start, start), own, True, 1, 0.0, self.training, False, True)[0]
            for one, own in zip(rows, weights, strict=True)
        ]
        return torch.cat(outputs), None

    def _scan(self, x: Tensor, merchants: int) -> Tensor:
        rows = by_example(x, merchants)
        bias = (self.bias_ih_l0 + self.bias_hh_l0).unsqueeze(1)
        fed = torch.baddbmm(bias, rows.flatten(1, 2), self.weight_ih_l0.transpose(1, 2)).view(*rows.shape[:3], -1)
        recurrent = self.weight_hh_l0.transpose(1, 2)
        state = cell = rows.new_zeros(*rows.shape[:2], self.width)
        states = []
        for time in range(rows.shape[2]):
            gates = torch.baddbmm(fed[:, :, time], state, recurrent)
            self._noted((rows[:, :, time], state), gates)
            entry, forget, update, exit_ = gates.chunk(4, dim=-1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * update.tanh()
            state = exit_.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=2).flatten(0, 1)

    def square_norms(self, gradients: Sequence[Tensor], merchants: int) -> Tensor:
        """As of two products into the gates, and of the two biases that are added to them."""
        x, state, g = self._flows(gradients)
        biases = 2 * g.sum(dim=2).square().sum(dim=-1)
        return linear_square_norms(x, g) + linear_square_norms(state, g) + biases

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """As of two products into the gates."""
        x, state, g = self._flows(gradients)
        g = (g * factors[:, :, None, None]).flatten(1, 2)
        bias = g.sum(dim=1)
        return {
            "weight_ih_l0": torch.bmm(g.transpose(1, 2), x.flatten(1, 2)),
            "weight_hh_l0": torch.bmm(g.transpose(1, 2), state.flatten(1, 2)),
            "bias_ih_l0": bias,
            "bias_hh_l0": bias.clone(),
        }

    def _flows(self, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        g = torch.stack(list(gradients), dim=2)
        x, state = (torch.stack([inputs[k].detach().to(g.dtype) for inputs, _ in self.calls], dim=2) for k in range(2))
        return x, state, g


class Mapped(StackedLayer):
    """Any other layer with weights of its own, mapped over merchants by ``torch.func.vmap``."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__(plain)
        if any(True for _ in plain.buffers(recurse=False)):
            raise CannotStack(f"a {type(plain).__name__} keeps buffers")
        self._plain = (plain,)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors ``[a * B, ...]`` to one ``[a * B, ...]``."""
        weights = {name: getattr(self, name) for name in self.own}
        merchants = len(next(iter(weights.values())))
        rows = tuple(one.reshape(merchants, -1, *one.shape[1:]) for one in inputs)
        output = torch.func.vmap(self._call, randomness="error")(weights, *rows)
        return self._noted(inputs, output.flatten(0, 1))

    def square_norms(self, gradients: Sequence[Tensor], merchants: int) -> Tensor:
        """From the example gradients themselves."""
        self._found = self._examples(gradients, merchants)
        return sum_of_squares(self._found)

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Sums of the example gradients."""
        return weighted(self._found, factors)

    def _call(self, weights: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(self._plain[0], dict(weights), inputs)
        return output

    def _examples(self, gradients: Sequence[Tensor], merchants: int) -> dict[str, Tensor]:
        weights = {name: getattr(self, name).detach() for name in self.own}

        def one(weights: dict[str, Tensor], gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
            pullback: Any = torch.func.vjp(lambda own: self._call(own, *(x.unsqueeze(0) for x in inputs)), weights)[1]
            found: dict[str, Tensor] = pullback(gradient.unsqueeze(0))[0]
            return found

        total: dict[str, Tensor] = {}
        for (inputs, _), gradient in zip(self.calls, gradients, strict=True):
            flows = [value.detach().reshape(merchants, -1, *value.shape[1:]) for value in (gradient, *inputs)]
            examples = torch.func.vmap(one, in_dims=(None, *[0] * len(flows)))
            found = torch.func.vmap(examples)(weights, *flows)
            total = {name: total[name] + part if total else part for name, part in found.items()}
        return total


def sum_of_squares(examples: Mapping[str, Tensor]) -> Tensor:
    """Squared norms ``[a, B]`` over example gradients ``[a, B, ...]`` by weight."""
    return torch.stack([value.flatten(2).square().sum(dim=-1) for value in examples.values()]).sum(dim=0)


def weighted(examples: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """Sums over examples of factor ``[a, B]`` times example gradient ``[a, B, ...]``."""
    return {name: torch.einsum("ab,ab...->a...", factors, value) for name, value in examples.items()}
