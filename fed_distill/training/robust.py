"""Regularised training on labelled examples: label smoothing, adversarial examples, R-Drop.

All of them treat examples independently, for any model and trainer, so that cohorts train like single merchants. They
apply to labelled examples only, not to soft labels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed_distill.config import AdversarialConfig, SharedTrainingConfig
from fed_distill.errors import ConfigError
from fed_distill.models.base import Outputs, TextModel
from fed_distill.training.plan import Objective, References

_SMALLEST = 1e-12


def smoothed(objective: Objective, smoothing: float) -> Objective:
    """``objective`` with labels of which the share ``smoothing`` is spread evenly over the classes.

    Its mean were the label drawn anew with that probability, which for a cross-entropy is label smoothing (Szegedy et
    al. 2016, sec. 7), and leaves terms that look at no label as they are. What a method looks up by the label (the
    classes that are not true in fedntd, a class's mean in fd) is drawn anew with it.
    """

    def smooth(outputs: Outputs, references: References) -> Tensor:
        classes = outputs.logits.shape[-1]
        each = [
            objective(outputs, {**references, "labels": torch.full_like(references["labels"], label)})
            for label in range(classes)
        ]
        return (1.0 - smoothing) * objective(outputs, references) + smoothing * torch.stack(each).mean(dim=0)

    return smooth


def passes(config: SharedTrainingConfig) -> int:
    """Forward passes of a step on labelled examples; more than one wants ``robust_losses``."""
    return 1 + _steps(config.adversarial) + (1 if config.r_drop else 0)


def check_robust(student: TextModel, config: SharedTrainingConfig) -> None:
    """ConfigError for a student that has nothing to attack, or without the dropout that R-Drop compares."""
    if config.adversarial.attack != "none" and not student.tables:
        raise ConfigError(f"training.adversarial: student {student.kind} has no embedding table to perturb: remove it")
    if config.r_drop and not any(isinstance(part, nn.Dropout) and part.p > 0 for part in student.modules()):
        raise ConfigError(
            f"training.r_drop requires dropout, which student {student.kind} does not have: set its option dropout, or "
            "remove r_drop"
        )


def robust_losses(
    model: TextModel,
    forward: Callable[[], Outputs],
    losses: Callable[[Outputs], Tensor],
    config: SharedTrainingConfig,
) -> Tensor:
    """Loss of each labelled example ``[batch]``, from as many passes through ``model`` as ``config`` asks for.

    forward: one pass over the batch, with dropout of its own each time. losses: of its outputs.

    R-Drop is (l_1 + l_2) / 2 + r_drop / 4 * (KL(p_1 || p_2) + KL(p_2 || p_1)), half of Wu et al. 2021, eq. 4; the
    adversarial loss is half of the clean and half of the adversarial one (Goodfellow et al. 2015, sec. 6).
    """
    with Perturbation.of(model) as perturbation:
        outputs = forward()
        clean = attacked = losses(outputs)
        for _ in range(_steps(config.adversarial)):
            perturbation.move(attacked, config.adversarial)
            attacked = losses(forward())
    if config.r_drop:
        again = forward()
        clean = (clean + losses(again)) / 2 + config.r_drop / 2 * _apart(outputs, again)
    return clean if config.adversarial.attack == "none" else (clean + attacked) / 2


def _apart(one: Outputs, other: Outputs) -> Tensor:
    """``divergence`` of two passes; of a pair of students that of both."""
    own = divergence(one.logits, other.logits)
    if one.shared is None or other.shared is None:
        return own
    return own + divergence(one.shared.logits, other.shared.logits)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Half of KL(p || q) + KL(q || p), p and q of two passes' logits ``[batch, classes]``."""
    log_p, log_q = F.log_softmax(one, dim=-1), F.log_softmax(other, dim=-1)
    symmetric: Tensor = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
    return symmetric / 2


@dataclass
class Perturbation:
    """What is added to the embeddings of a batch, ``[batch, ...]`` for each lookup of a pass in its order.

    Embeddings are what the modules give that own the model's tables.
    """

    added: list[Tensor] = field(default_factory=list)
    looked_up: list[Tensor] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, model: TextModel) -> Iterator["Perturbation"]:
        """While entered, the model's lookups are followed, and moved once ``move`` was called."""
        perturbation = cls()
        hooks = [module.register_forward_hook(perturbation._look_up) for module in embeddings(model)]
        try:
            yield perturbation
        finally:
            for hook in hooks:
                hook.remove()

    def move(self, losses: Tensor, config: AdversarialConfig) -> None:
        """Move along the gradient of each example's own loss, and begin the next pass.

        FGM (Miyato et al. 2017, eq. 5): radius * g / ||g||. PGD (Madry et al. 2018, eq. 1): a step of ``step_size``,
        then back into the ball of the radius. Norms are over all of an example's embeddings together.
        """
        found = torch.autograd.grad(losses.sum(), self.looked_up, retain_graph=True)
        length = config.radius if config.attack == "fgm" else config.step_size
        before = self.added or [torch.zeros_like(value) for value in found]
        moved = [old + step for old, step in zip(before, _scaled(found, length), strict=True)]
        self.added, self.looked_up = _within(moved, config.radius), []

    def _look_up(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        place = len(self.looked_up)
        moved = output + self.added[place] if self.added else output
        if not moved.requires_grad:  # of a frozen table
            moved = moved.detach().requires_grad_()
        self.looked_up.append(moved)
        return moved


def embeddings(model: TextModel) -> list[nn.Module]:
    """The modules that own the model's tables, each once."""
    paths = dict.fromkeys(table.rpartition(".")[0] for table in model.tables)
    return [model.get_submodule(path) for path in paths]


def _steps(config: AdversarialConfig) -> int:
    return {"none": 0, "fgm": 1, "pgd": config.steps}[config.attack]


def _norms(parts: Sequence[Tensor]) -> Tensor:
    """L2 norm of each example over all ``parts`` ``[batch, ...]``: ``[batch]``."""
    squares = torch.stack([part.flatten(1).square().sum(dim=1) for part in parts])
    return squares.sum(dim=0).sqrt()


def _each(parts: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    return [part * factor.view(-1, *[1] * (part.dim() - 1)) for part in parts]


def _scaled(parts: Sequence[Tensor], length: float) -> list[Tensor]:
    """Each example's ``parts`` at this length together; what is zero stays zero."""
    return _each(parts, length / _norms(parts).clamp_min(_SMALLEST))


def _within(parts: Sequence[Tensor], radius: float) -> list[Tensor]:
    """Each example's ``parts``, shortened to ``radius`` where they are longer together."""
    return _each(parts, (radius / _norms(parts).clamp_min(_SMALLEST)).clamp_max(1.0))
