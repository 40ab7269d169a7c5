"""The teacher's soft labels on the proxy set, computed once and read from disk ever after.

A file is named by what it depends on (teacher, proxy texts, temperature) and memory-mapped when read, so that
many processes of one machine share it. A torn file is reported in the log and computed again.
"""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fed_distill.data.examples import Examples
from fed_distill.distill.fingerprint import examples_fingerprint, fingerprint
from fed_distill.errors import DataError, TrainingError
from fed_distill.models import TextModel, predict
from fed_distill.results.files import write_atomic

_CHUNK = 1024
_SUM_TOLERANCE = 1e-3

logger = logging.getLogger(__name__)


def soft_labels(
    teacher: TextModel,
    teacher_fingerprint: str,
    proxy: Examples,
    temperature: float,
    cache_dir: Path,
    progress: Callable[[int, int], None],
) -> Tensor:
    """The teacher's class probabilities at ``temperature`` on the proxy set, float32 ``[proxy, classes]``.

    They are read from ``cache_dir``, or computed (``progress`` is called with examples done and in all) and stored
    there. Raise DataError for an empty proxy set, TrainingError if the teacher's output is not finite.
    """
    if not len(proxy):
        raise DataError("the proxy set is empty: raise data.proxy_size or data.public_share")
    key = fingerprint(
        teacher=teacher_fingerprint, proxy=examples_fingerprint(proxy.unlabeled()), temperature=float(temperature)
    )
    path = cache_dir / "soft_labels" / f"{key}.npy"
    if path.exists():
        try:
            return _read(path, len(proxy))
        except (OSError, EOFError, ValueError) as error:
            logger.warning("the stored soft labels in %s cannot be used and are computed again: %s", path, error)
    probabilities = _compute(teacher, proxy, temperature, progress)
    if not bool(torch.isfinite(probabilities).all()):
        row = int((~torch.isfinite(probabilities)).any(dim=1).nonzero()[0])
        raise TrainingError(f"the teacher's output on proxy example {row} is not finite: its training diverged")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, probabilities.numpy(), allow_pickle=False)
    write_atomic(path, content.getvalue())
    return _read(path, len(proxy))


def _compute(teacher: TextModel, proxy: Examples, temperature: float, progress: Callable[[int, int], None]) -> Tensor:
    parts = []
    for start in range(0, len(proxy), _CHUNK):
        stop = min(start + _CHUNK, len(proxy))
        pairs = None if proxy.pairs is None else proxy.pairs[start:stop]
        parts.append(predict(teacher, teacher.encode(proxy.texts[start:stop], pairs), temperature=temperature))
        progress(stop, len(proxy))
    return torch.cat(parts)


def _read(path: Path, examples: int) -> Tensor:
    """Map the file copy-on-write: torch wants writable memory, and writes to it must not reach the file."""
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.dtype != np.float32 or array.ndim != 2 or len(array) != examples:
        raise ValueError(f"it holds {array.dtype} {array.shape}, not float32 ({examples}, classes)")
    if not np.allclose(array.sum(axis=1), 1.0, atol=_SUM_TOLERANCE):
        raise ValueError("its rows are not probabilities")
    return torch.from_numpy(array)
