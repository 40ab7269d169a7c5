"""Embedding tables of a cohort: every merchant's rows one after another in one flat table.

Row 0 is padding and shared; after it come each merchant's other rows. With row numbers that point into the flat table
a lookup is the plain one, and merchants with few rows cost no more than they have. A merchant's part of a batch never
points at another's rows.

Where members of the unit have several examples, the gradients of the rows that each looks up are made
(``RowGradients``): they are no more than what flows back to the lookups, and pairs of places would be too many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill.training.cohort.layers import Call, CannotStack, StackedLayer, lengths, rounding
from fed_distill.training.cohort.layout import Members


@dataclass(frozen=True)
class RowGradients:
    """Members' gradients of a table, of the K rows that each of them looks up.

    member and row: int64 ``[K]``. gradients: by weight, ``[K, width]``.
    """

    member: Tensor
    row: Tensor
    gradients: Mapping[str, Tensor]

    def square_norms(self, members: int) -> Tensor:
        """Squared norm of each of the ``members``' gradients, float64 ``[M]``."""
        squares = torch.cat([one.double() for one in self.gradients.values()], dim=1).square().sum(dim=1)
        return squares.new_zeros(members).index_add_(0, self.member, squares)

    def clipped_sums(self, factors: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum over members of factor ``[M]`` times gradient, laid out as the flat tables ``weights`` are."""
        scale = factors[self.member].unsqueeze(1)
        return {
            name: torch.zeros_like(weights[name]).index_add_(0, self.row, one * scale)
            for name, one in self.gradients.items()
        }


class TableLayer(StackedLayer):
    """A layer that looks up rows; its weights are flat tables ``[1 + rows of all merchants, width]``.

    ``trainable``: bool ``[flat rows]``, those that private steps may change; set from outside before them.
    """

    trainable: Tensor
    _rows: RowGradients

    def clear(self, odd: Tensor) -> None:
        """Look up padding for them: sums go through the lookups once more."""
        look_up_again(self, odd)

    def _kept(self, ids: Tensor) -> Tensor:
        """Which looked-up places have a gradient in a private step."""
        return self.trainable[ids]

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Through the lookups once more: nothing that flows into them depends on a weight."""
        weights = {name: getattr(self, name) for name in self.own}
        if self.layout.members is not None:
            return self._rows.clipped_sums(factors, weights)
        outputs = [output for _, output in self.calls]
        scaled = [gradient * factors.reshape(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
        found = torch.autograd.grad(outputs, list(weights.values()), scaled, retain_graph=True)
        allowed = self.trainable.unsqueeze(-1)
        return {name: value * allowed for name, value in zip(weights, found, strict=True)}


class StackedTable(TableLayer):
    """``nn.Embedding`` over a flat table."""

    weight: Tensor

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__(plain)
        _refuse_options(plain)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[N, ..., width]`` of ``ids`` ``[N, ...]``; 0 is padding, which is never trained."""
        return self._noted((ids,), F.embedding(self._checked(ids), self.weight, padding_idx=0))

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Sum over pairs of places with the same row of the product of their gradients."""
        ids, g = looked_up(self.calls, gradients)
        if self.layout.members is None:
            return same_row_products(ids, g, self._kept(ids))
        member, row, summed = by_row(ids, g, self._kept(ids), len(self.weight), self.layout.members)
        self._rows = RowGradients(member, row, {"weight": summed})
        return self._rows.square_norms(len(self.layout.members))


class Rows(StackedLayer):
    """``nn.Embedding`` whose rows every merchant has all of (positions, segments): weight ``[a, rows, width]``."""

    weight: Tensor
    _rows: RowGradients

    def __init__(self, plain: nn.Embedding) -> None:
        super().__init__(plain)
        _refuse_options(plain)
        self.padding = plain.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``[N, ..., width]`` of ``ids`` ``[N, ...]``."""
        self._checked(ids)
        found = F.embedding(self._placed(ids), self.weight.view(-1, self.weight.shape[2]))
        if self.padding is not None:
            found = torch.where((ids == self.padding).unsqueeze(-1), found.detach(), found)
        return self._noted((ids,), found)

    def clear(self, odd: Tensor) -> None:
        """As for ``StackedTable``."""
        look_up_again(self, odd)

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """As for ``StackedTable``."""
        ids, g = looked_up(self.calls, gradients)
        kept = torch.ones_like(ids, dtype=torch.bool) if self.padding is None else ids != self.padding
        if self.layout.members is None:
            return same_row_products(ids, g, kept)
        member, row, summed = by_row(self._placed(ids), g, kept, self.weight[..., 0].numel(), self.layout.members)
        self._rows = RowGradients(member, row, {"weight": summed})
        return self._rows.square_norms(len(self.layout.members))

    def _placed(self, ids: Tensor) -> Tensor:
        """Their places in one flat table of all merchants' rows."""
        return ids + self.layout.owner.view(-1, *[1] * (ids.dim() - 1)) * self.weight.shape[1]

    def clipped_sums(self, gradients: Sequence[Tensor], factors: Tensor) -> dict[str, Tensor]:
        """Through the lookups once more."""
        if self.layout.members is not None:
            sums = self._rows.clipped_sums(factors, {"weight": self.weight.flatten(0, 1)})
            return {"weight": sums["weight"].view_as(self.weight)}
        outputs = [output for _, output in self.calls]
        scaled = [gradient * factors.reshape(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
        return {"weight": torch.autograd.grad(outputs, [self.weight], scaled, retain_graph=True)[0]}


class Bag(TableLayer):
    """``WeightedBag`` over flat tables."""

    table: Tensor
    importance: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        """Weighted sums of rows ``[N, width]`` of ``ids`` ``[N, features]``; 0 is padding."""
        importance = F.embedding(self._checked(ids), self.importance, padding_idx=0).squeeze(-1)
        weights = torch.where(ids > 0, importance.exp(), 0.0)
        summed = F.embedding_bag(ids, self.table, per_sample_weights=weights, mode="sum", padding_idx=0)
        return self._noted((ids,), summed)

    def square_norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """From each row's coefficient in each call: a row's gradient is the calls' gradients in these proportions.

        Places of one example with the same row are brought together by sorting; a row's importance has the gradient
        coefficient times (row, call's gradient).
        """
        if self.layout.members is not None:
            self._rows = self._row_gradients(gradients, self.layout.members)
            return self._rows.square_norms(len(self.layout.members))
        calls, places = len(self.calls), [inputs[0].shape[1] for inputs, _ in self.calls]
        ids = torch.cat([inputs[0] for inputs, _ in self.calls], dim=1)
        call = torch.arange(calls, device=ids.device).repeat_interleave(torch.tensor(places, device=ids.device))
        ids, order = ids.sort(dim=1)
        call = call.expand_as(ids).gather(1, order)
        weights = torch.where(self._kept(ids), self.importance.detach()[ids].squeeze(-1).exp(), 0.0)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        group = first.long().cumsum(dim=1) - 1
        coefficients = ids.new_zeros((*ids.shape, calls), dtype=weights.dtype)
        coefficients = coefficients.flatten(1).scatter_add_(1, group * calls + call, weights).view_as(coefficients)
        flows = torch.stack(list(gradients), dim=1)
        products = torch.matmul(coefficients.transpose(1, 2), coefficients)
        share = rounding(ids.shape[1] + flows.shape[2] + calls, flows)
        sizes = lengths(flows)
        table = (products * torch.matmul(flows, flows.transpose(1, 2))).sum(dim=(1, 2)).clamp_min(0.0)
        table += share * (products * sizes.unsqueeze(1) * sizes.unsqueeze(2)).sum(dim=(1, 2))
        rows = self.table.detach()[torch.where(first, ids, 0)] * first.unsqueeze(-1)
        at = group.unsqueeze(-1).expand(-1, -1, calls)
        per_row = torch.zeros_like(coefficients).scatter_add_(1, at, torch.matmul(rows, flows.transpose(1, 2)))
        importance = (coefficients * per_row).sum(dim=2).square().sum(dim=1)
        largest = torch.zeros_like(coefficients).scatter_add_(1, at, lengths(rows).unsqueeze(2) * sizes.unsqueeze(1))
        importance += share * (coefficients * largest).sum(dim=2).square().sum(dim=1)
        return table + importance

    def _row_gradients(self, gradients: Sequence[Tensor], members: Members) -> RowGradients:
        """A row's importance has the gradient (row, gradient of the row)."""
        ids = torch.cat([inputs[0] for inputs, _ in self.calls], dim=1)
        each = [
            flow.unsqueeze(1).expand(-1, inputs[0].shape[1], -1)
            for flow, (inputs, _) in zip(gradients, self.calls, strict=True)
        ]
        g = self.importance.detach()[ids].exp() * torch.cat(each, dim=1)
        member, row, table = by_row(ids, g, self._kept(ids), len(self.table), members)
        importance = (table * self.table.detach()[row]).sum(dim=1, keepdim=True)
        return RowGradients(member, row, {"table": table, "importance": importance})


def look_up_again(layer: StackedLayer, odd: Tensor) -> None:
    """Have ``layer`` make its calls anew, of row 0 for examples ``odd``, bool ``[N]``."""
    calls, layer.calls = layer.calls, []
    for (ids,), _ in calls:
        layer(layer.cleared(ids, odd))


def looked_up(calls: Sequence[Call], gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of every example, all row numbers that it looks up ``[N, P]`` and the gradients there ``[N, P, width]``."""
    ids = [inputs[0].reshape(len(inputs[0]), -1) for inputs, _ in calls]
    g = [one.reshape(*places.shape, one.shape[-1]) for places, one in zip(ids, gradients, strict=True)]
    return torch.cat(ids, dim=1), torch.cat(g, dim=1)


def _refuse_options(plain: nn.Embedding) -> None:
    if plain.max_norm is not None or plain.scale_grad_by_freq or plain.sparse:
        raise CannotStack("an Embedding with max_norm, scale_grad_by_freq or sparse gradients")


def same_row_products(ids: Tensor, gradients: Tensor, kept: Tensor) -> Tensor:
    """Squared norms ``[N]`` of the example gradients of a table, ids and kept ``[N, P]``, gradients ``[N, P, width]``:
    the sum over places p, q with the same row of (g_p, g_q), and what rounding may have taken of it."""
    same = (ids.unsqueeze(1) == ids.unsqueeze(2)) & kept.unsqueeze(1) & kept.unsqueeze(2)
    sizes = lengths(gradients)
    slack = rounding(gradients.shape[1] + gradients.shape[2], gradients) * sizes.unsqueeze(1) * sizes.unsqueeze(2)
    products = torch.matmul(gradients, gradients.transpose(1, 2))
    return (products * same).sum(dim=(1, 2)).clamp_min(0.0) + (slack * same).sum(dim=(1, 2))


def by_row(ids: Tensor, gradients: Tensor, kept: Tensor, rows: int, members: Members) -> tuple[Tensor, Tensor, Tensor]:
    """Each member's sum of ``gradients`` ``[N, P, width]`` by looked-up row, ids and kept ``[N, P]``, of a table of
    ``rows``: the member and the row of each sum, int64 ``[K]``, and the sums ``[K, width]``."""
    keys, place = torch.unique((members.of.unsqueeze(1) * rows + ids)[kept], return_inverse=True)
    sums = gradients.new_zeros(len(keys), gradients.shape[2]).index_add_(0, place, gradients[kept])
    return keys // rows, keys % rows, sums


def flat_starts(rows: Sequence[int]) -> list[int]:
    """Where each merchant's rows begin in a flat table, and where it ends; ``rows`` count the padding row."""
    starts = [1]
    for count in rows:
        starts.append(starts[-1] + count - 1)
    return starts


def flattened(parts: Sequence[Tensor]) -> Tensor:
    """Merchants' tables ``[rows, width]`` as one flat table; the padding row, which is the same for all, is that of the
    first whose is finite."""
    padding = next((part[:1] for part in parts if bool(torch.isfinite(part[0]).all())), parts[0][:1])
    return torch.cat([padding, *(part[1:] for part in parts)])


def unflattened(flat: Tensor, starts: Sequence[int], merchant: int) -> Tensor:
    """One merchant's table, padding row first."""
    return torch.cat([flat[:1], flat[starts[merchant] : starts[merchant + 1]]])


def placed(positions: Mapping[str, Tensor], starts: Mapping[str, Sequence[int]], merchant: int) -> dict[str, Tensor]:
    """A merchant's maps from row numbers to positions, by encoded field, as such to places in the flat table whose
    ``starts`` these are."""
    return {
        field: torch.where(positions[field] > 0, positions[field] + (own[merchant] - 1), 0)
        for field, own in starts.items()
    }
