"""Private steps done by Opacus: the slow reference for DP-SGD by example or by group.

Opacus' hooks give each example's gradient and its optimizer clips and sums them; what is ours is where the noise comes
from (one flat draw a step, so that every trainer adds the same), which rows of a table may change, and that a group's
examples are one gradient, their mean. Importing this
module imports Opacus, which takes over a second: import it where private steps are wanted.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.grad_sample import register_grad_sampler
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fed_distill.errors import TrainingError
from fed_distill.models.bag import WeightedBag
from fed_distill.models.base import TextModel
from fed_distill.privacy.dp_sgd import ExampleDP, add_noise
from fed_distill.seeds import Keystream
from fed_distill.training.optimization import correct
from fed_distill.training.preparation import Prepared, Segment
from fed_distill.training.submodel import Submodel


@contextmanager
def private_steps(
    model: TextModel,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    number: int,
    anchor: Mapping[str, Tensor],
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Make ``model`` ready for the private segment ``number``; gives a function (indices) -> sum of their losses.

    It takes one step of ``optimizer``, whose state goes on: the gradient of each member of the unit (an example, or a
    group's mean) clipped over all trained weights, their sum, noise, all divided by the expected number of members;
    without any, noise alone. The proximal pull toward
    ``anchor`` and a correction are public and added afterwards. The losses are private: they must not leave the
    merchant without noise.
    Raises TrainingError where Opacus cannot tell one example's gradient from another's.
    """
    segment, submodel, learner = prepared.segments[number], prepared.submodel, prepared.learner
    if segment.privacy is None:
        raise ValueError(f"segment {number} of {learner.name} is not private")
    layout = {name: value for name, value in model.named_parameters() if value.requires_grad}
    rates = prepared.rates
    stream = Keystream(*learner.randomness, "noise", number)
    private = _NoisyOptimizer(optimizer, segment.privacy, segment.expected_batch, layout, submodel.trained, stream)

    def step(index: Tensor) -> Tensor:
        private.zero_grad(set_to_none=True)
        loss = _backward(hooked, model, segment, submodel, index) if len(index) else torch.zeros(())
        for name, value in layout.items():
            _complete(name, value, len(index), submodel.trained.get(name), learner.name)
        if segment.groups is not None:
            _average_groups(layout.values(), segment.groups[index])
        _leave_out_what_overflows(layout.values())
        private.pre_step()
        if segment.phase.proximal_mu:
            for name, value in layout.items():
                if value.grad is not None:
                    value.grad += segment.phase.proximal_mu * (value.detach() - anchor[name])
        for name, value in layout.items():
            if value.grad is not None and name in rates:
                value.grad *= rates[name]
        if segment.phase.corrected:
            correct(model, learner.correction)
        optimizer.step()
        return loss

    with _per_example_recurrence(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # as it must: inputs are integers
        problems = [*ModuleValidator.validate(model), *GradSampleModule.validate(model)]
        if problems:
            raise TrainingError(f"{learner.name}: this student cannot be trained with DP: {problems[0]}")
        hooked = GradSampleModule(model, loss_reduction="sum")
        try:
            yield step
        finally:
            private.zero_grad(set_to_none=True)
            hooked.to_standard_module()


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer with ``privacy.dp_sgd.add_noise`` as its noise, on trained rows only."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        privacy: ExampleDP,
        expected_batch: float,
        layout: Mapping[str, nn.Parameter],
        trained: Mapping[str, Tensor],
        stream: Keystream,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            expected_batch_size=expected_batch,
        )
        self._deviation, self._stream = privacy.deviation, stream
        self._places: list[tuple[Any, Tensor]] = [
            (value, trained.get(name, torch.ones(value.shape[:1], dtype=torch.bool))) for name, value in layout.items()
        ]

    def add_noise(self) -> None:
        """Set each gradient to the clipped sum and noise on its trained rows; one flat draw for all of them."""
        sums = [weight.summed_grad[rows] for weight, rows in self._places]
        noised = add_noise(torch.cat([one.flatten() for one in sums]), self._deviation, self._stream)
        parts = torch.split(noised, [one.numel() for one in sums])
        for (weight, rows), one, part in zip(self._places, sums, parts, strict=True):
            weight.grad = weight.summed_grad
            weight.grad[rows] = part.view_as(one)


def _backward(hooked: nn.Module, model: TextModel, segment: Segment, submodel: Submodel, index: Tensor) -> Tensor:
    """Have the hooks take the gradient of each example's own loss; returns the sum of the losses."""
    outputs = segment.phase.run(hooked, submodel.renumber(model.collate(segment.encoded, index)))
    loss = segment.phase.objective(outputs, {key: values[index] for key, values in segment.references.items()}).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach()


def _complete(name: str, weight: Any, examples: int, trained: Tensor | None, learner: str) -> None:
    """Check the gradients ``[examples, ...]`` that the hooks left on a weight, and clear rows that are not trained.

    A weight that the loss does not use has none yet: it gets zeros.
    """
    if weight.grad_sample is None and weight.grad is None:
        weight.grad_sample = torch.zeros(examples, *weight.shape)
    elif not isinstance(weight.grad_sample, Tensor) or len(weight.grad_sample) != examples:
        raise TrainingError(
            f"{learner}: Opacus finds no gradient of each example for the student's weight {name!r}: "
            "use it in one module's forward pass only, with the examples along its input's first dimension"
        )
    if trained is not None:
        weight.grad_sample[:, ~trained] = 0.0


def _average_groups(weights: Collection[Any], groups: Tensor) -> None:
    """Replace the examples' gradients ``[examples, ...]`` by the mean of each group's, ``[groups, ...]``; ``groups``:
    which one each example is of, int64 ``[examples]``."""
    _, of, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    for weight in weights:
        each = weight.grad_sample
        shares = each / sizes[of].view(-1, *[1] * (each.dim() - 1))
        weight.grad_sample = each.new_zeros(len(sizes), *each.shape[1:]).index_add_(0, of, shares)


def _leave_out_what_overflows(weights: Collection[Any]) -> None:
    """Clear the gradients of members that are not finite: clipping would not bound what they change, and one NaN in
    what a merchant sends would tell of a single member."""
    sound = torch.stack([weight.grad_sample.isfinite().unsqueeze(-1).flatten(1).all(dim=1) for weight in weights]).all(
        dim=0
    )
    if not bool(sound.all()):
        for weight in weights:
            weight.grad_sample[~sound] = 0.0


@register_grad_sampler(WeightedBag)  # type: ignore[untyped-decorator]  # Opacus is untyped
def _bag_gradients(bag: WeightedBag, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Gradients of each example: table ``[batch, rows, width]`` and importance ``[batch, rows, 1]``.

    The vector is sum_r u_r table_r with u_r, how much the example uses row r, proportional to exp(importance_r).
    """
    (ids,) = activations
    used = bag.table.new_zeros(len(ids), len(bag.table)).scatter_add_(1, ids.long(), bag.weights(ids).detach())
    return {
        bag.table: used.unsqueeze(2) * backprops.unsqueeze(1),
        bag.importance: (used * (backprops @ bag.table.detach().T)).unsqueeze(2),
    }


@contextmanager
def _per_example_recurrence(model: nn.Module) -> Iterator[None]:
    """Put Opacus' DPLSTM, over the same parameters, in the place of every nn.LSTM for a while."""
    places = [(name, module) for name, module in model.named_modules() if type(module) is nn.LSTM]
    for name, lstm in places:
        model.set_submodule(name, _dp_lstm(lstm))
    try:
        yield
    finally:
        for name, lstm in places:
            model.set_submodule(name, lstm)


def _dp_lstm(lstm: nn.LSTM) -> DPLSTM:
    with torch.device("meta"):  # its own weights are not wanted, nor the random numbers that they would take
        twin = DPLSTM(
            lstm.input_size,
            lstm.hidden_size,
            lstm.num_layers,
            bias=lstm.bias,
            batch_first=lstm.batch_first,
            dropout=lstm.dropout,
            bidirectional=lstm.bidirectional,
            proj_size=lstm.proj_size,
        )
    for own, name in twin.old_to_new.items():
        module, _, attribute = own.rpartition(".")
        setattr(twin.get_submodule(module), attribute, getattr(lstm, name))
        twin.register_parameter(name, getattr(lstm, name))
    twin.train(lstm.training)
    return twin
