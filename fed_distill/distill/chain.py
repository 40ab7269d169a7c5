"""Distillation over several levels: teacher, assistants by falling size, student (after Mirzadeh et al., AAAI 2020).

The whole chain's loss is KL(f_0 || f_K) + sum_(k=1..K) alpha_k * CE(f_k, f_(k-1)), f_0 the teacher, f_K the student and
those between the assistants; alpha_K is ``distill.assistant_weight``. So the student hears the teacher beside the level
above it, and with the teacher come all kinds that ``distill.transfer`` names; the paper's hears that level alone, which
is an empty ``distill.transfer``. All learn the server's labels too. With the levels above held fixed the loss falls
apart level by level, so each is trained once, kept on disk like the teacher, and loaded ever after.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from fed_distill.config import AssistantConfig
from fed_distill.distill.transfer import DistillationTarget
from fed_distill.errors import CheckpointError, ModelError
from fed_distill.models import TextModel, load_model
from fed_distill.models.weights import Weights
from fed_distill.storage.fingerprint import fingerprint, named_files, own_code
from fed_distill.storage.sealed import check_folder, replace_sealed_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainLevel:
    """A trained assistant. name: its fingerprint. labels: its probabilities on the proxy set ``[proxy, classes]``."""

    config: AssistantConfig
    model: TextModel
    name: str
    labels: Tensor


def levels(
    assistants: Sequence[AssistantConfig],
    target: DistillationTarget,
    depends_on: str,
    cache_dir: Path,
    build: Callable[[AssistantConfig, int], TextModel],
    train: Callable[[TextModel, DistillationTarget, AssistantConfig, int, TextModel | None], Weights],
    label: Callable[[TextModel, str], Tensor],
) -> list[ChainLevel]:
    """Every assistant, trained by the level above it or loaded from ``cache_dir``; the one below the teacher first.

    target: the teacher's. depends_on: fingerprint of all that the levels depend on beside the assistants themselves.
    build makes the untrained assistant of a place (1 for the first), train gives its weights, told the level above it
    (None for the teacher), label its probabilities on the proxy set by its model and name. A stored level that cannot
    be read is reported in the log and trained again.
    """
    above, name = target.soft_labels, depends_on
    found: list[ChainLevel] = []
    for place, config in enumerate(assistants, 1):
        settings = config.model_dump(mode="json")
        name = fingerprint(above=name, assistant=settings, files=named_files(settings), code=own_code(config.model))
        upper = found[-1].model if found else None
        step = partial(_trained, config, place, upper, target.following(above, config.weight), build, train)
        model = _stored(cache_dir / "levels" / name, step)
        above = label(model, name)
        found.append(ChainLevel(config, model, name, above))
    return found


def _trained(
    config: AssistantConfig,
    place: int,
    upper: TextModel | None,
    target: DistillationTarget,
    build: Callable[[AssistantConfig, int], TextModel],
    train: Callable[[TextModel, DistillationTarget, AssistantConfig, int, TextModel | None], Weights],
) -> TextModel:
    model = build(config, place)
    model.load_state_dict(dict(train(model, target, config, place, upper)))
    return model.eval()


def _stored(folder: Path, make: Callable[[], TextModel]) -> TextModel:
    if folder.exists():
        try:
            check_folder(folder)
            return load_model(folder)
        except (CheckpointError, ModelError) as error:
            logger.warning("the stored level in %s cannot be used and is trained again: %s", folder, error)
    model = make()
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_sealed_folder(folder, model.save)
    return model
