"""DP-SGD for a whole cohort: clip every member's gradient, sum by merchant, and add noise by merchant.

A member of the unit is an example, or a group of them with the gradient of its mean loss. Gradients of members are not
materialised: layers compute their norms, then the sum of clipped ones (see ``layers``), so that a private step costs
little more than an ordinary one. Abadi et al. 2016, algorithm 1.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fed_distill.privacy.dp_sgd import add_noise
from fed_distill.seeds import Keystream
from fed_distill.training.cohort.layers import StackedLayer
from fed_distill.training.cohort.stacking import Stack
from fed_distill.training.cohort.tables import flattened
from fed_distill.training.preparation import Prepared, Segment

_SMALLEST = 1e-6
"""Added to a norm before it divides, as Opacus does."""


Flows = Mapping[StackedLayer, Sequence[Tensor]]
"""By layer that was called, the losses' gradients by the outputs of its calls."""


def example_flows(stack: Stack, losses: Tensor, mask: Tensor) -> Flows:
    """What flows back to each layer's outputs from the losses ``[N]`` of examples that count (``mask`` 1), each divided
    by the number of its member's examples; the losses must have been computed while the stack was protected."""
    members = stack.layout.members
    weights = mask if members is None else mask * members.share
    layers = [layer for layer in dict.fromkeys(layer for layer, _ in stack.layers.values()) if layer.calls]
    outputs = [output for layer in layers for _, output in layer.calls]
    found = torch.autograd.grad((losses * weights).sum(), outputs, retain_graph=True, allow_unused=True)
    flows = [torch.zeros_like(one) if flow is None else flow for one, flow in zip(outputs, found, strict=True)]
    flows = [flow.to(stack.dtype) for flow in flows]
    of_layer = {}
    for layer in layers:
        of_layer[layer], flows = flows[: len(layer.calls)], flows[len(layer.calls) :]
    return of_layer


def square_norms(flows: Flows) -> Tensor:
    """Squared norm of each member's gradient by all weights, ``[M]``, in the dtype of the flows."""
    found = [layer.square_norms(own) for layer, own in flows.items()]
    dtype = next(iter(flows.values()))[0].dtype  # in which a norm that is too large for it is infinite, in float64 too
    return torch.stack(found).sum(dim=0).to(dtype)


def without(flows: Flows, odd: Tensor) -> Flows:
    """``flows``, and the calls that they are of, with zeros for examples ``odd``, bool ``[N]``."""
    for layer in flows:
        layer.clear(odd)
    return {layer: [layer.cleared(flow, odd) for flow in own] for layer, own in flows.items()}


def clipped_sums(stack: Stack, flows: Flows, mask: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """Each merchant's sum of its members' clipped gradients, stacked like the weights; 0 for weights not in use.

    A member whose gradient is not finite counts as none: no factor makes it smaller, and one NaN in what a merchant
    sends would tell of a single member. mask: 1 for examples that count, ``[N]``. largest: each merchant's largest
    norm, ``[merchants]``.
    """
    layout = stack.layout
    owner = layout.owner if layout.members is None else layout.members.owner
    with torch.no_grad():
        norms = square_norms(flows).sqrt()
        odd = ~torch.isfinite(norms)
    if bool(odd.any()):
        flows = without(flows, layout.to_examples(odd))
        norms = square_norms(flows).sqrt()
    with torch.no_grad():
        counted = layout.by_member(mask) > 0  # padding is a member of its own
        factors = counted * (largest[owner] / (norms + _SMALLEST)).clamp_max(1.0)
    sums = {layer: layer.clipped_sums(own, factors) for layer, own in flows.items()}
    return {
        name: sums[layer][own].detach().to(stack.dtype) if layer in sums else torch.zeros_like(stack.parameters[name])
        for name, (layer, own) in stack.layers.items()
    }


def stacked_rates(stack: Stack, members: Sequence[Prepared]) -> dict[str, Tensor]:
    """The members' ``rates`` of weights, laid out as the stacked weights are; of weights that have any."""
    own = [member.rates for member in members]
    rates = {}
    for name, value in stack.stacked.items():
        if not any(name in one for one in own):
            continue
        if name in stack.tables:
            of_rows = [
                one.get(name, torch.ones(())).expand(len(member.submodel.rows[name]), 1)
                for one, member in zip(own, members, strict=True)
            ]
            rates[name] = flattened(of_rows).to(stack.device)
        else:
            numbers = torch.stack([one.get(name, torch.ones(())) for one in own])
            rates[name] = numbers.view(-1, *[1] * (value.dim() - 1)).to(stack.device)
    return rates


class Noise:
    """One phase's noise: a stream for each merchant, drawn from at each of its steps."""

    def __init__(self, stack: Stack, members: Sequence[Prepared], segments: Sequence[Segment], number: int) -> None:
        self._stack = stack
        self._streams: list[Keystream] = []
        self._deviations: list[float] = []
        self._places: list[dict[str, int | Tensor]] = []
        for place, (member, segment) in enumerate(zip(members, segments, strict=True)):
            assert segment.privacy is not None
            self._deviations.append(segment.privacy.deviation)
            self._streams.append(Keystream(*member.learner.randomness, "noise", number))
            places: dict[str, int | Tensor] = dict.fromkeys(stack.stacked, place)
            for name in stack.tables:
                span = stack.span(name, place, place + 1)
                places[name] = stack.trained_rows[name][span].nonzero().flatten() + span.start
            self._places.append(places)

    @torch.no_grad()
    def add(self, sums: Mapping[str, Tensor], merchants: int) -> None:
        """Add one step's noise to the first ``merchants``' sums of clipped gradients, in place."""
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # a stream draws one number after another
            for _ in threads.map(lambda place: self._add(sums, place), range(merchants)):
                pass

    def _add(self, sums: Mapping[str, Tensor], place: int) -> None:
        places = self._places[place]
        own = [sums[name][places[name]] for name in places]
        noised = add_noise(torch.cat([one.flatten() for one in own]), self._deviations[place], self._streams[place])
        for name, one, part in zip(places, own, torch.split(noised, [one.numel() for one in own]), strict=True):
            sums[name][places[name]] = part.view_as(one)
