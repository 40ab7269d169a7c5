"""The teacher's hidden features and sentence embeddings on the proxy set, computed once and cached on disk.

Only small summaries are stored: the mean state of each layer, and its activation map at a few positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fed_distill.data.examples import Examples
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.distill.hints import POSITIONS, Layers
from fed_distill.distill.soft_labels import checked_finite, encoded_in_chunks
from fed_distill.models import TextModel
from fed_distill.models.prediction import lengths
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.storage.stored import stored_array
from fed_distill.text.encoded import Encoded

What = Literal["states", "maps", "sentences"]

_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Summaries of a teacher's layers on the proxy set, without embeddings.

    states: mean hidden states ``[proxy, layers, width]``. maps: activation maps ``[proxy, layers, POSITIONS]``.
    """

    states: Tensor
    maps: Tensor


def features(
    teacher: TextModel,
    teacher_fingerprint: str,
    proxy: Examples,
    cache_dir: Path,
    progress: Callable[[int, int], None],
) -> Features:
    """Return the teacher's features on the proxy set, cached in ``cache_dir``.

    :raises TrainingError: they are not finite
    """
    once = cache(lambda: _read(teacher, proxy, progress))  # the teacher reads the proxy set once for both
    return Features(
        _stored(teacher_fingerprint, proxy, cache_dir, "states", lambda: once().states),
        _stored(teacher_fingerprint, proxy, cache_dir, "maps", lambda: once().maps),
    )


def sentence_embeddings(
    teacher: TextModel,
    teacher_fingerprint: str,
    proxy: Examples,
    cache_dir: Path,
    progress: Callable[[int, int], None],
) -> Tensor:
    """Return the embeddings of the texts of each proxy example, ``[proxy, texts, width]``, cached in ``cache_dir``.

    An embedding is the mean of the teacher's last hidden states for one text alone (Sentence-BERT, Reimers and Gurevych
    2019, section 3). Each distinct text is embedded once.

    :param teacher: the teacher before fine-tuning on pairs, which makes its states of single texts arbitrary
    :param teacher_fingerprint: part of the cache key
    :raises TrainingError: they are not finite
    """
    sides = [proxy.texts] if proxy.pairs is None else [proxy.texts, proxy.pairs]
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for side in sides for text in side))}
    nothing = np.zeros(len(rows), dtype=np.int64)
    distinct = Examples(tuple(rows), None, nothing, nothing, ("",) * len(rows))
    found = _stored(
        teacher_fingerprint,
        distinct,
        cache_dir,
        "sentences",
        lambda: _read(teacher, distinct, progress, last=True).states,
    )[:, 0]
    return torch.stack([found[[rows[text] for text in side]] for side in sides], dim=1)


def _stored(
    teacher_fingerprint: str, proxy: Examples, cache_dir: Path, what: What, compute: Callable[[], Tensor]
) -> Tensor:
    key = fingerprint(
        teacher=teacher_fingerprint, proxy=examples_fingerprint(proxy.unlabeled()), what=what, positions=POSITIONS
    )

    def check(stored: Tensor) -> None:
        if stored.dim() != 3 or len(stored) != len(proxy):
            raise ValueError(f"it contains {tuple(stored.shape)}, not ({len(proxy)}, layers, width)")
        if not bool(torch.isfinite(stored).all()):
            raise ValueError("it contains non-finite values")

    path = cache_dir / "features" / f"{key}.npy"
    return stored_array(path, f"hidden {what}", lambda: checked_finite(compute()), check)


def _read(teacher: TextModel, examples: Examples, progress: Callable[[int, int], None], last: bool = False) -> Features:
    """Compute the features of ``examples``, float32 on the CPU; ``last``: states of the last layer only."""
    parts = [_computed(teacher, encoded, last) for encoded in encoded_in_chunks(teacher, examples, progress)]
    return Features(torch.cat([part.states for part in parts]), torch.cat([part.maps for part in parts]))


def _computed(teacher: TextModel, encoded: Encoded, last: bool) -> Features:
    device = next(teacher.parameters()).device
    order = torch.argsort(lengths(encoded), stable=True)
    training = teacher.training
    teacher.eval()
    try:
        with torch.no_grad():
            states, maps = [], []
            for index in torch.split(order, _BATCH):
                batch = {name: values.to(device) for name, values in teacher.collate(encoded, index).items()}
                found = Layers.of(teacher(batch, hidden=True))
                states.append(torch.stack(found.means[-1:] if last else found.means, dim=1).float().cpu())
                maps.append(found.maps.float().cpu())
    finally:
        teacher.train(training)
    return Features(_in_order(torch.cat(states), order), _in_order(torch.cat(maps), order))


def _in_order(sorted_: Tensor, order: Tensor) -> Tensor:
    """Put rows back to where ``order`` took them from."""
    return torch.empty_like(sorted_).index_copy_(0, order, sorted_)
