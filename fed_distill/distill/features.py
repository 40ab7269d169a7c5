"""The teacher's hidden features and sentence embeddings on the proxy set, computed once and cached on disk.

Only small summaries are stored: the mean state of each layer, and its activation map at a few positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
    return Features(
        _stored(teacher, teacher_fingerprint, proxy, cache_dir, progress, "states"),
        _stored(teacher, teacher_fingerprint, proxy, cache_dir, progress, "maps"),
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
    found = _stored(teacher, teacher_fingerprint, distinct, cache_dir, progress, "sentences")[:, 0]
    return torch.stack([found[[rows[text] for text in side]] for side in sides], dim=1)


def _stored(
    teacher: TextModel,
    teacher_fingerprint: str,
    proxy: Examples,
    cache_dir: Path,
    progress: Callable[[int, int], None],
    what: What,
) -> Tensor:
    key = fingerprint(
        teacher=teacher_fingerprint, proxy=examples_fingerprint(proxy.unlabeled()), what=what, positions=POSITIONS
    )

    def make() -> Tensor:
        parts = [_computed(teacher, encoded, what) for encoded in encoded_in_chunks(teacher, proxy, progress)]
        return checked_finite(torch.cat(parts))

    def check(stored: Tensor) -> None:
        if stored.dim() != 3 or len(stored) != len(proxy):
            raise ValueError(f"it contains {tuple(stored.shape)}, not ({len(proxy)}, layers, width)")
        if not bool(torch.isfinite(stored).all()):
            raise ValueError("it contains non-finite values")

    return stored_array(cache_dir / "features" / f"{key}.npy", f"hidden {what}", make, check)


def _computed(teacher: TextModel, encoded: Encoded, what: What) -> Tensor:
    """Return the means or maps of all layers, or the means of the last one, float32 ``[examples, layers, ...]`` on the
    CPU."""
    device = next(teacher.parameters()).device
    order = torch.argsort(lengths(encoded), stable=True)
    training = teacher.training
    teacher.eval()
    try:
        with torch.no_grad():
            parts = []
            for index in torch.split(order, _BATCH):
                batch = {name: values.to(device) for name, values in teacher.collate(encoded, index).items()}
                found = Layers.of(teacher(batch, hidden=True))
                means = found.means[-1:] if what == "sentences" else found.means
                parts.append((found.maps if what == "maps" else torch.stack(means, dim=1)).float().cpu())
    finally:
        teacher.train(training)
    ordered = torch.cat(parts)
    return torch.empty_like(ordered).index_copy_(0, order, ordered)
