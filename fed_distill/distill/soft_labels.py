"""The teacher's soft labels on the proxy set, computed once and cached on disk.

The file name is a fingerprint of teacher, proxy texts and temperature; see ``stored``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fed_distill.data.examples import Examples
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.errors import DataError, TrainingError
from fed_distill.models import TextModel, predict
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.storage.stored import stored_array
from fed_distill.text.encoded import Encoded

_CHUNK = 1024
_SUM_TOLERANCE = 1e-3


def soft_labels(
    teacher: TextModel,
    teacher_fingerprint: str,
    proxy: Examples,
    temperature: float,
    cache_dir: Path,
    progress: Callable[[int, int], None],
) -> Tensor:
    """Return the teacher's class probabilities on the proxy set, float32 ``[proxy, classes]``, cached on disk.

    :param teacher: the teacher
    :param teacher_fingerprint: part of the cache key
    :param proxy: the proxy set
    :param temperature: softmax temperature
    :param cache_dir: folder of the cache
    :param progress: called with (examples done, total examples)
    :raises DataError: the proxy set is empty
    :raises TrainingError: the teacher's output is not finite
    """
    if not len(proxy):
        raise DataError("the proxy set is empty: raise data.proxy_size or data.public_share")
    key = fingerprint(
        teacher=teacher_fingerprint, proxy=examples_fingerprint(proxy.unlabeled()), temperature=float(temperature)
    )

    def make() -> Tensor:
        parts = [predict(teacher, one, temperature=temperature) for one in encoded_in_chunks(teacher, proxy, progress)]
        return checked_finite(torch.cat(parts))

    def check(stored: Tensor) -> None:
        if stored.dim() != 2 or len(stored) != len(proxy):
            raise ValueError(f"it contains {tuple(stored.shape)}, not ({len(proxy)}, classes)")
        if not torch.allclose(stored.sum(dim=1), torch.ones(()), rtol=0.0, atol=_SUM_TOLERANCE):
            raise ValueError("its rows are not probabilities")

    return stored_array(cache_dir / "soft_labels" / f"{key}.npy", "soft labels", make, check)


def encoded_in_chunks(
    teacher: TextModel, examples: Examples, progress: Callable[[int, int], None]
) -> Iterator[Encoded]:
    """Yield encoded examples in chunks; ``progress`` is called with (examples done, total) after each chunk."""
    for start in range(0, len(examples), _CHUNK):
        stop = min(start + _CHUNK, len(examples))
        pairs = None if examples.pairs is None else examples.pairs[start:stop]
        yield teacher.encode(examples.texts[start:stop], pairs)
        progress(stop, len(examples))


def checked_finite(outputs: Tensor) -> Tensor:
    """Return ``outputs`` ``[proxy, ...]``; raise TrainingError, naming the first example, if they are not finite."""
    finite = torch.isfinite(outputs).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise TrainingError(f"the teacher's output on proxy example {row} is not finite: its training diverged")
    return outputs
