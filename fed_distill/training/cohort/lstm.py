"""An LSTM whose weights differ from merchant to merchant, as a scan of plain operations (see ``layers``)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fed_distill.training.cohort.layers import CannotStack, StackedLayer, lengths, linear_square_norms, rounding


class StackedLSTM(StackedLayer):
    """A one-layer, one-direction ``nn.LSTM``; the state that it returns is None, since nothing here reads it.

    On a CPU each merchant goes through torch's own kernel; on a GPU, or when example gradients are wanted, all
    merchants go through one loop over time.
    """

    needs_even_recording = True
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
        """``[N, length, in]`` to the states ``[N, length, width]`` and None."""
        self._checked(x)
        if x.is_cuda or self.record:
            return self._scan(x), None
        weights = zip(*(getattr(self, name).unbind() for name in self.own), strict=True)
        kernel: Any = torch.lstm
        outputs = []
        for rows, own in zip(torch.split(x, list(self.layout.sizes)), weights, strict=True):
            start = x.new_zeros(1, len(rows), self.width)
            if len(rows):
                outputs.append(kernel(rows, (start, start), own, True, 1, 0.0, self.training, False, True)[0])
        return torch.cat(outputs), None

    def _scan(self, x: Tensor) -> Tensor:
        merchants = len(self.weight_ih_l0)
        rows = x.reshape(merchants, -1, *x.shape[1:])
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

    def cleared(self, values: Tensor, odd: Tensor) -> Tensor:
        """Of a step in time, ``[merchants, examples of each, width]``."""
        return super().cleared(values.flatten(0, 1), odd).view_as(values)

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """As of two products into the gates, and of the two biases that are added to them."""

        def norms(x: Tensor, state: Tensor, g: Tensor) -> Tensor:
            slack = rounding(g.shape[1], g) * lengths(g).sum(dim=1).square()
            biases = 2 * (g.sum(dim=1).square().sum(dim=-1) + slack)
            return linear_square_norms(x, g) + linear_square_norms(state, g) + biases

        return self.layout.norms(norms, *self._flows(gradients))

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """As of two products into the gates."""
        x, state, g = self._flows(gradients)
        g = (g * self.layout.to_examples(factors)[:, None, None]).flatten(0, 1)
        bias = self.layout.sums(g)
        return {
            "weight_ih_l0": self.layout.outer(g, x.flatten(0, 1)),
            "weight_hh_l0": self.layout.outer(g, state.flatten(0, 1)),
            "bias_ih_l0": bias,
            "bias_hh_l0": bias.clone(),
        }

    def _flows(self, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        g = self._exact(torch.stack(list(gradients), dim=2).flatten(0, 1))
        x, state = (torch.stack([inputs[k].detach().to(g.dtype) for inputs, _ in self.calls], dim=2) for k in range(2))
        return x.flatten(0, 1), state.flatten(0, 1), g
