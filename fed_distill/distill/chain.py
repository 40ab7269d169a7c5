"""Distillation over several levels: teacher, assistants of decreasing size, student (after Mirzadeh et al., AAAI 2020).

The loss of the chain is KL(f_0 || f_K) + sum_(k=1..K) alpha_k * CE(f_k, f_(k-1)), with the teacher f_0, the student f_K
and the assistants in between; alpha_K is ``distill.assistant_weight``. So the student is distilled from the teacher, by
all kinds in ``distill.transfer``, and from the level above it. An empty ``distill.transfer`` gives the paper's setting,
the level above only. All levels are also trained on the server's labels. With the levels above fixed, the loss
decomposes, so each level is trained once and cached on disk like the teacher.
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
    """A trained assistant. name: its fingerprint. labels: its soft labels on the proxy set ``[proxy, classes]``."""

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
    """Train every assistant, or load it from ``cache_dir``; the one below the teacher comes first.

    A cached level that cannot be read is reported in the log and trained again.

    :param assistants: configurations, in order of decreasing size
    :param target: the target for distillation from the teacher
    :param depends_on: fingerprint of all other inputs of the levels
    :param cache_dir: folder of cached levels
    :param build: returns the untrained assistant of a level, counted from 1
    :param train: returns trained weights, given the level above (None for the teacher)
    :param label: returns class probabilities on the proxy set, given a model and its name
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
            logger.warning("the stored level in %s cannot be used and will be trained again: %s", folder, error)
    model = make()
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_sealed_folder(folder, model.save)
    return model
