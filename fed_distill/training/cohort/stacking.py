"""One model for a whole cohort: a copy of the student whose weighted layers hold every merchant's weights.

Weights lie stacked, ``[merchants, ...]``, tables flat (see ``tables``). What a student freezes is not stacked: there
is one of it, and it is computed for all merchants as one ordinary batch.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fed_distill.models.bag import WeightedBag
from fed_distill.models.base import Encoded, TextModel
from fed_distill.training.cohort.layers import LSTM, CannotStack, LayerNorm, Linear, Mapped, StackedLayer
from fed_distill.training.cohort.tables import (
    Bag,
    Rows,
    Table,
    TableLayer,
    flat_starts,
    flattened,
    placed,
    unflattened,
)
from fed_distill.training.submodel import Submodel
from fed_distill.transport.messages import Weights

_LAYERS: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: Linear,
    nn.LayerNorm: LayerNorm,
    nn.LSTM: LSTM,
    nn.Embedding: Rows,
    WeightedBag: Bag,
}
_CROSS_EXAMPLE = (nn.modules.batchnorm._BatchNorm,)


class Stack:
    """The stacked weights of several merchants and the model that reads them.

    ``activate`` says for how many of them, from the first on, the model is to compute: merchants that have finished
    are at the end, and cost nothing more.
    """

    def __init__(
        self, student: TextModel, weights: Sequence[Weights], submodels: Sequence[Submodel], device: torch.device
    ) -> None:
        """``weights``: each merchant's whole weights. Raise CannotStack if the student has a layer that cannot be."""
        self.size, self.device = len(weights), device
        self.model, self.layers = stackable(student)
        for name, value in self.model.named_parameters():
            value.data = weights[0][name].clone()
        self.model.to(device)
        self.tables = [name for name in student.tables if name in self.layers]
        self.starts: list[int] = []
        if self.tables:
            self.starts = flat_starts([len(one.rows[self.tables[0]]) for one in submodels])
        self.stacked: dict[str, Tensor] = {}
        for name in self.layers:
            if name in self.tables:
                rows = [one[name][sub.rows[name]] for one, sub in zip(weights, submodels, strict=True)]
                self.stacked[name] = flattened(rows).to(device)
            else:
                self.stacked[name] = torch.stack([one[name] for one in weights]).to(device)
        self.dtype = next(iter(self.stacked.values())).dtype
        self.trained_rows: dict[str, Tensor] = {}
        for name in self.tables:
            masks = [sub.trained[name] for sub in submodels]
            self.trained_rows[name] = torch.cat([masks[0][:1], *(mask[1:] for mask in masks)]).to(device)
        self.places: dict[str, Tensor] = {}
        if self.tables:
            maps = [placed(sub.positions, self.starts, place) for place, sub in enumerate(submodels)]
            self.places = {field: torch.stack([one[field] for one in maps]).to(device) for field in maps[0]}
        self.active = 0
        self.parameters: dict[str, nn.Parameter] = {}

    def activate(self, merchants: int) -> None:
        """Compute for the first ``merchants`` from now on; ``parameters`` are views of their weights."""
        if merchants == self.active:
            return
        self.active = merchants
        for name, (layer, own) in self.layers.items():
            parameter = nn.Parameter(self.stacked[name][: self.end(name, merchants)])
            setattr(layer, own, parameter)
            self.parameters[name] = parameter

    @contextmanager
    def protected(self) -> Iterator[None]:
        """While entered, only rows that DP allows have gradients, and layers keep their calls."""
        for name, (layer, _) in self.layers.items():
            layer.record = True
            if isinstance(layer, TableLayer):
                layer.trainable = self.trained_rows[name][: self.end(name, self.active)]
        try:
            yield
        finally:
            for layer, _ in self.layers.values():
                layer.record = False
                layer.forget()

    def end(self, name: str, merchants: int) -> int:
        """Where the weights of the first ``merchants`` end."""
        return self.starts[merchants] if name in self.tables else merchants

    def span(self, name: str, first: int, last: int) -> slice:
        """Where the weights of merchants ``first`` to before ``last`` lie."""
        return slice(self.starts[first], self.starts[last]) if name in self.tables else slice(first, last)

    def owners(self, merchants: int) -> Tensor:
        """Which of the first ``merchants`` owns each row of a flat table; the padding row is the first's."""
        sizes = torch.tensor(self.starts[: merchants + 1]).diff().to(self.device)
        sizes[0] += 1
        return torch.arange(merchants, device=self.device).repeat_interleave(sizes)

    def spread(self, name: str, values: Tensor, dimensions: int) -> Tensor:
        """One value a merchant, laid out to scale a stacked weight or gradient of so many dimensions."""
        of_entry = values[self.owners(len(values))] if name in self.tables else values
        return of_entry.view(-1, *[1] * (dimensions - 1))

    def renumbered(self, batch: Encoded, merchants: Tensor) -> dict[str, Tensor]:
        """A batch with row numbers turned into places in the flat tables; ``merchants``: whose example each is."""
        return {
            name: self.places[name][merchants.unsqueeze(1), values.long()] if name in self.places else values
            for name, values in batch.items()
        }

    def member(self, merchant: int) -> dict[str, Tensor]:
        """One merchant's weights as they are now, on the CPU, of memory of their own."""
        return {
            name: (unflattened(value, self.starts, merchant) if name in self.tables else value[merchant].clone()).cpu()
            for name, value in self.stacked.items()
        }


def stackable(student: TextModel) -> tuple[TextModel, dict[str, tuple[StackedLayer, str]]]:
    """A copy of ``student`` with stacked layers that have no weights yet; and by weight name, its layer and its name
    there. Raise CannotStack naming the layer."""
    frozen = {name for name, value in student.named_parameters() if not value.requires_grad}
    kept = set(student.state_dict()) - {name for name, _ in student.named_parameters()}
    if kept:
        raise CannotStack(f"it keeps {sorted(kept)[0]!r}, which training may change and which is no weight")
    if len(list(student.named_parameters(remove_duplicate=False))) > len(list(student.named_parameters())):
        raise CannotStack("weights that two layers share")
    owners = {name: module for name, module in student.named_modules() if list(module.parameters(recurse=False))}
    skeleton = copy.deepcopy(student, {id(value): value for value in student.parameters() if value.requires_grad})
    layers: dict[str, tuple[StackedLayer, str]] = {}
    made: dict[int, StackedLayer] = {}
    for path, module in owners.items():
        names = {own: f"{path}.{own}" if path else own for own, _ in module.named_parameters(recurse=False)}
        if frozen.issuperset(names.values()):
            continue
        if not path or not frozen.isdisjoint(names.values()):
            raise CannotStack(f"weights {', '.join(names.values())} that are frozen in part or the model's own")
        if id(module) not in made:
            made[id(module)] = _stacked_layer(path, module, student)
        parent, _, last = path.rpartition(".")
        setattr(skeleton.get_submodule(parent), last, made[id(module)])
        layers |= {full: (made[id(module)], own) for own, full in names.items()}
    for module in student.modules():
        if isinstance(module, _CROSS_EXAMPLE):
            raise CannotStack(f"a {type(module).__name__}, which mixes examples")
    return skeleton, layers


def _stacked_layer(path: str, module: nn.Module, student: TextModel) -> StackedLayer:
    kind = _LAYERS.get(type(module), Mapped)
    full = {f"{path}.{own}" for own, _ in module.named_parameters(recurse=False)}
    if full & set(student.tables):
        if not full <= set(student.tables):
            raise CannotStack(f"layer {path} has tables and other weights")
        kind = Table if kind is Rows else kind
        if not issubclass(kind, TableLayer):
            raise CannotStack(f"layer {path}, a {type(module).__name__} with tables of its own")
    try:
        return kind(module)
    except CannotStack as error:
        raise CannotStack(f"layer {path}: {error}") from error
