"""One model for a whole cohort: a copy of the student whose weighted layers have every merchant's weights.

Weights are stacked, ``[merchants, ...]``, and tables are flat (see ``tables``). Frozen layers are not stacked: they are
shared and computed for all merchants as one ordinary batch.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fed_distill.models.bag import WeightedBag
from fed_distill.models.base import TextModel
from fed_distill.models.weights import Weights
from fed_distill.text.encoded import Encoded
from fed_distill.training.cohort.layers import CannotStack, LayerNorm, Linear, Mapped, StackedLayer
from fed_distill.training.cohort.layout import Layout
from fed_distill.training.cohort.lstm import StackedLSTM
from fed_distill.training.cohort.tables import (
    Bag,
    Rows,
    StackedTable,
    TableLayer,
    flat_starts,
    flattened,
    placed,
    unflattened,
)
from fed_distill.training.submodel import Submodel

_LAYERS: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: Linear,
    nn.LayerNorm: LayerNorm,
    nn.LSTM: StackedLSTM,
    nn.Embedding: Rows,
    WeightedBag: Bag,
}
_CROSS_EXAMPLE = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Skeleton:
    """A student with stacked layers: ``layers`` by weight name, with the weight's name there."""

    model: TextModel
    layers: Mapping[str, tuple[StackedLayer, str]]


class Stack:
    """The stacked weights of several merchants and the model that reads them.

    ``activate`` says for how many of them, from the first on, the model is to compute: merchants that have finished
    are at the end, and cost nothing more.
    """

    def __init__(
        self, skeleton: Skeleton, weights: Sequence[Weights], submodels: Sequence[Submodel], device: torch.device
    ) -> None:
        """skeleton: of the merchants' student; it is this stack's from now on. weights: each merchant's whole ones."""
        self.size, self.device = len(weights), device
        self.model, self.layers = skeleton.model, skeleton.layers
        for name, value in self.model.named_parameters():
            value.data = weights[0][name].clone()
        self.model.to(device)
        self.layout = Layout()
        for layer, _ in self.layers.values():
            layer.layout = self.layout
        self.tables = [name for name in self.model.tables if name in self.layers]
        self.starts = {name: flat_starts([len(one.rows[name]) for one in submodels]) for name in self.tables}
        self._submodels = submodels
        self.stacked = self.laid(weights)
        self.dtype = next(iter(self.stacked.values())).dtype
        self.trained_rows: dict[str, Tensor] = {}
        for name in self.tables:
            masks = [sub.trained[name] for sub in submodels]
            self.trained_rows[name] = torch.cat([masks[0][:1], *(mask[1:] for mask in masks)]).to(device)
        starts = {field: self.starts[name] for name in self.tables for field in self.model.tables[name]}
        maps = [placed(sub.positions, starts, place) for place, sub in enumerate(submodels)]
        self.places = {field: torch.stack([one[field] for one in maps]).to(device) for field in starts}
        self.active = 0
        self.parameters: dict[str, nn.Parameter] = {}

    def laid(self, weights: Sequence[Weights]) -> dict[str, Tensor]:
        """Each merchant's values by weight name, whole, laid out as ``stacked`` is."""
        laid: dict[str, Tensor] = {}
        for name in self.layers:
            if name in self.tables:
                rows = [one[name][sub.rows[name]] for one, sub in zip(weights, self._submodels, strict=True)]
                laid[name] = flattened(rows).to(self.device)
            else:
                laid[name] = torch.stack([one[name] for one in weights]).to(self.device)
        return laid

    def activate(self, merchants: int) -> None:
        """Compute for the first ``merchants`` from now on; ``parameters`` are views of their weights."""
        if merchants == self.active:
            return
        self.active = merchants
        for name, (layer, own) in self.layers.items():
            parameter = nn.Parameter(self.stacked[name][: self.end(name, merchants)])
            setattr(layer, own, parameter)
            self.parameters[name] = parameter

    def release(self) -> None:
        """Give the weights up: the skeleton, which outlives this stack, must not keep their memory."""
        for layer, own in self.layers.values():
            setattr(layer, own, None)
        self.parameters.clear()

    def even(self, private: bool) -> bool:
        """Whether the merchants of a batch must all have the same number of examples."""
        layers = [layer for layer, _ in self.layers.values()]
        needed = any(layer.needs_even or (private and layer.needs_even_recording) for layer in layers)
        return needed or self.device.type != "cpu"

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
        return self.starts[name][merchants] if name in self.starts else merchants

    def span(self, name: str, first: int, last: int) -> slice:
        """Where the weights of merchants ``first`` to before ``last`` lie."""
        if name in self.starts:
            return slice(self.starts[name][first], self.starts[name][last])
        return slice(first, last)

    def owners(self, table: str, merchants: int) -> Tensor:
        """Which of the first ``merchants`` owns each row of a flat table; the padding row is the first's."""
        sizes = torch.tensor(self.starts[table][: merchants + 1]).diff().to(self.device)
        sizes[0] += 1
        return torch.arange(merchants, device=self.device).repeat_interleave(sizes)

    def spread(self, name: str, values: Tensor, dimensions: int) -> Tensor:
        """One value a merchant, laid out to scale a stacked weight or gradient of so many dimensions."""
        of_entry = values[self.owners(name, len(values))] if name in self.starts else values
        return of_entry.view(-1, *[1] * (dimensions - 1))

    def renumbered(self, batch: Encoded, merchants: Tensor) -> dict[str, Tensor]:
        """A batch with row numbers turned into places in the flat tables; ``merchants``: whose example each is."""
        return {
            name: self.places[name][merchants.view(-1, *[1] * (values.dim() - 1)), values.long()]
            if name in self.places
            else values
            for name, values in batch.items()
        }

    def member(self, merchant: int) -> dict[str, Tensor]:
        """One merchant's weights, on the CPU; they may be views of the stack's, which must not be trained any more."""
        tables = {name: unflattened(self.stacked[name], starts, merchant) for name, starts in self.starts.items()}
        return {
            name: (tables[name] if name in tables else value[merchant]).cpu() for name, value in self.stacked.items()
        }


def skeleton_of(student: TextModel) -> Skeleton:
    """A copy of ``student`` with stacked layers that have no weights yet. Raise CannotStack naming the layer that
    cannot be stacked."""
    frozen = {name for name, value in student.named_parameters() if not value.requires_grad}
    if len(list(student.named_parameters(remove_duplicate=False))) > len(list(student.named_parameters())):
        raise CannotStack("two layers share weights")
    kept = set(student.state_dict()) - {name for name, _ in student.named_parameters()}
    if kept:
        raise CannotStack(f"it has a buffer {sorted(kept)[0]!r}, which training may change")
    owners = {name: module for name, module in student.named_modules() if list(module.parameters(recurse=False))}
    skeleton = copy.deepcopy(student, {id(value): value for value in student.parameters() if value.requires_grad})
    layers: dict[str, tuple[StackedLayer, str]] = {}
    made: dict[int, StackedLayer] = {}
    for path, module in owners.items():
        names = {own: f"{path}.{own}" if path else own for own, _ in module.named_parameters(recurse=False)}
        if frozen.issuperset(names.values()):
            continue
        if not path or not frozen.isdisjoint(names.values()):
            raise CannotStack(f"weights {', '.join(names.values())} are partly frozen, or belong to the model itself")
        if len(list(module.parameters())) > len(names):
            raise CannotStack(f"layer {path}, a {type(module).__name__}, has own weights and inner layers")
        if id(module) not in made:
            made[id(module)] = _stacked_layer(path, module, student)
        parent, _, last = path.rpartition(".")
        setattr(skeleton.get_submodule(parent), last, made[id(module)])
        layers |= {full: (made[id(module)], own) for own, full in names.items()}
    for module in student.modules():
        if isinstance(module, _CROSS_EXAMPLE):
            raise CannotStack(f"a {type(module).__name__} mixes examples")
    return Skeleton(skeleton, layers)


def _stacked_layer(path: str, module: nn.Module, student: TextModel) -> StackedLayer:
    kind = _LAYERS.get(type(module), Mapped)
    full = {f"{path}.{own}" for own, _ in module.named_parameters(recurse=False)}
    if full & set(student.tables):
        if not full <= set(student.tables):
            raise CannotStack(f"layer {path} has tables and other weights")
        kind = StackedTable if kind is Rows else kind
        if not issubclass(kind, TableLayer):
            raise CannotStack(f"layer {path}, a {type(module).__name__}, has its own tables")
    try:
        return kind(module)
    except CannotStack as error:
        raise CannotStack(f"layer {path}: {error}") from error
