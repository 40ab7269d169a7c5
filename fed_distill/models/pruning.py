"""Structured pruning of transformer students: whole layers, and neurons of feed-forward networks.

The smaller network is exact: what is removed is sliced out of the matrices, and the result is an ordinary Hugging Face
configuration with fewer layers or a smaller feed-forward width. Attention heads cannot be removed in this form: since
transformers 5 there is no ``prune_heads``, and BERT's output projection is square, so that a configuration with fewer
heads describes wider heads, not a narrower attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill import seeds
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.building import rebuild
from fed_distill.models.huggingface import is_huggingface
from fed_distill.models.prediction import predict
from fed_distill.models.pretrained import evenly_spaced
from fed_distill.models.transformer import Transformer
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded

Importance = Sequence[Sequence[Tensor]]
"""Importance of each neuron, float64 ``[neurons]``, by layer and by feed-forward network of that layer."""
_BATCH = 64


@dataclass(frozen=True)
class _Layout:
    """Names in an architecture: keys of the number of layers and of the feed-forward width in its configuration, the
    prefix of a layer's weights, and a feed-forward network's first and second matrix in a layer."""

    layers: str
    neurons: str
    prefix: str
    first: str
    second: str


_LAYOUTS: Mapping[str, _Layout] = {
    "bert": _Layout(
        "num_hidden_layers", "intermediate_size", "network.bert.encoder.layer.", "intermediate.dense", "output.dense"
    ),
    "distilbert": _Layout("n_layers", "hidden_dim", "network.distilbert.transformer.layer.", "ffn.lin1", "ffn.lin2"),
    "mobilebert": _Layout(
        "num_hidden_layers",
        "intermediate_size",
        "network.mobilebert.encoder.layer.",
        "intermediate.dense",
        "output.dense",
    ),
}


@dataclass(frozen=True)
class NetworkShape:
    """layers: number of layers. neurons: number of neurons of each feed-forward network."""

    layers: int
    neurons: int


def prunable(model: TextModel) -> Transformer:
    """Return ``model`` as a transformer that can be pruned; raise ModelError if it is none."""
    if not isinstance(model, Transformer):
        raise ModelError(
            f"a student {model.kind!r} has no layers to remove: prune bert-mini, distilbert or mobilebert; of "
            "two-tower and static, fed-distill export writes the variant pruned"
        )
    if not is_huggingface(model):
        raise ModelError(
            "a student with adapters (lora_rank, ia3, prefix_length) cannot be pruned: train one without adapters"
        )
    if model.architecture not in _LAYOUTS:
        raise ModelError(
            f"a student of architecture {model.architecture!r} cannot be pruned: only {', '.join(_LAYOUTS)} can"
        )
    return model


def shape_of(model: Transformer) -> NetworkShape:
    """Return the sizes of ``model`` that pruning can reduce."""
    layout, config = _LAYOUTS[model.architecture], model.network.config
    return NetworkShape(getattr(config, layout.layers), getattr(config, layout.neurons))


def pruned_shape(model: Transformer, layers: int | None, neurons: int | None) -> NetworkShape:
    """Return the shape of ``model`` with ``layers`` and ``neurons``, where None keeps what it has.

    :raises ConfigError: a number is not between 1 and that of the model, or nothing would be removed
    """
    had = shape_of(model)
    for option, number, most in (("--layers", layers, had.layers), ("--neurons", neurons, had.neurons)):
        if number is not None and not 1 <= number <= most:
            raise ConfigError(f"{option} {number:,}: the student has {most:,}; choose a number from 1 to {most:,}")
    wanted = NetworkShape(layers or had.layers, neurons or had.neurons)
    if wanted == had:
        raise ConfigError(
            f"nothing would be removed from a student of {had.layers:,} layers of {had.neurons:,} neurons: pass fewer "
            "with --layers or --neurons"
        )
    return wanted


def drawn_classes(model: Transformer, encoded: Encoded, randomness: Randomness) -> Tensor:
    """Draw a class for each of ``n`` encoded examples from the probabilities of ``model``; return int64 ``[n]``."""
    return torch.multinomial(predict(model, encoded), 1, generator=seeds.torch_stream(*randomness))[:, 0]


def neuron_importance(model: Transformer, encoded: Encoded, classes: Tensor) -> Importance:
    """Return E|dL(x)/dm| of each feed-forward neuron, where L is the cross-entropy of example x and m = 1 a mask that
    its activation is multiplied by (Michel et al., "Are sixteen heads really better than one?", NeurIPS 2019, eq. 2,
    with masks on heads; Hou et al., "DynaBERT", NeurIPS 2020, rank the neurons of feed-forward networks as well).

    :param model: the student before pruning, in evaluation mode
    :param encoded: ``n`` encoded examples
    :param classes: their classes, int64 ``[n]``. Those of a proxy set are unknown: ``drawn_classes`` takes their place,
        as the cross-entropy with the model's own probabilities has gradient zero
    """
    shape = shape_of(model)
    networks = [model.get_submodule(second) for layer in range(shape.layers) for _, second in _matrices(model, layer)]
    total = torch.zeros(len(networks), shape.neurons, dtype=torch.float64)
    for index in torch.split(torch.arange(len(classes)), _BATCH):
        masks = [torch.ones(len(index), shape.neurons, requires_grad=True) for _ in networks]
        with _masked(networks, masks):
            logits = model(model.collate(encoded, index)).logits
        loss = F.cross_entropy(logits, classes[index], reduction="sum")
        total += torch.stack([one.abs().double().sum(dim=0) for one in torch.autograd.grad(loss, masks)])
    each = len(networks) // shape.layers
    found = total / len(classes)
    return [list(found[each * layer : each * (layer + 1)]) for layer in range(shape.layers)]


def pruned(model: Transformer, shape: NetworkShape, importance: Importance | None = None) -> Transformer:
    """Return a new model of ``shape`` with the weights of ``model``: evenly spaced layers from the first to the last
    (after DistilBERT, Sanh et al. 2019, which takes every second one), and in each layer the most important neurons.

    :param importance: of the neurons of ``model``; required only if some are removed
    """
    layout, had = _LAYOUTS[model.architecture], shape_of(model)
    config = {**model.settings["config"], layout.layers: shape.layers, layout.neurons: shape.neurons}
    small = cast(Transformer, rebuild(model.kind, {**model.settings, "config": config}))
    chosen = evenly_spaced(had.layers, shape.layers)
    kept: dict[str, tuple[int, Tensor]] = {}
    if shape.neurons < had.neurons:
        if importance is None:
            raise ValueError("pruning neurons requires their importance")
        for layer, source in enumerate(chosen):
            for (first, second), ranks in zip(_matrices(small, layer), importance[source], strict=True):
                rows = ranks.argsort(descending=True, stable=True)[: shape.neurons].sort().values
                kept |= {f"{first}.weight": (0, rows), f"{first}.bias": (0, rows), f"{second}.weight": (1, rows)}
    weights = model.state_dict()
    for name, target in small.state_dict().items():
        source_name = name
        if name.startswith(layout.prefix):
            place, _, rest = name.removeprefix(layout.prefix).partition(".")
            source_name = f"{layout.prefix}{chosen[int(place)]}.{rest}"
        whole = weights[source_name]
        target.copy_(whole.index_select(*kept[name]) if name in kept else whole)
    return small.eval()


def _matrices(model: Transformer, layer: int) -> list[tuple[str, str]]:
    """Return the names of the first and the second matrix of each feed-forward network of a layer: MobileBERT has
    several, the others one."""
    layout = _LAYOUTS[model.architecture]
    before = [f"ffn.{number}." for number in range(getattr(model.network.config, "num_feedforward_networks", 1) - 1)]
    prefix = f"{layout.prefix}{layer}."
    return [(f"{prefix}{which}{layout.first}", f"{prefix}{which}{layout.second}") for which in (*before, "")]


@contextmanager
def _masked(networks: Sequence[nn.Module], masks: Sequence[Tensor]) -> Iterator[None]:
    """Multiply the input ``[batch, length, neurons]`` of each module by its mask ``[batch, neurons]``."""
    hooks = [
        module.register_forward_pre_hook(lambda _, given, mask=mask: (given[0] * mask[:, None, :],))
        for module, mask in zip(networks, masks, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
