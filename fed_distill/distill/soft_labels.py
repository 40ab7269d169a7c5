"""The teacher's soft labels on the proxy set, computed once and cached on disk.

The file name is a fingerprint of teacher, proxy texts and temperature; see ``stored``. Examples are labelled in chunks
of similar length, the longest first, so that little is padded and memory is exhausted at once or never. Each chunk is
stored when it is finished, and an interrupted labelling goes on with the next one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fed_distill.config.tables import Precision
from fed_distill.data.examples import Examples
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.errors import DataError, TrainingError
from fed_distill.models import TextModel, predict
from fed_distill.models.precision import autocast, products
from fed_distill.storage.fingerprint import fingerprint
from fed_distill.storage.stored import stored_array, stored_part
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
    precision: Precision = "float32",
) -> Tensor:
    """Return the teacher's class probabilities on the proxy set, float32 ``[proxy, classes]``, cached on disk.

    :param teacher: the teacher
    :param teacher_fingerprint: part of the cache key; it must cover ``precision``
    :param proxy: the proxy set
    :param temperature: softmax temperature
    :param cache_dir: folder of the cache
    :param progress: called with (examples done, total examples) after each chunk
    :param precision: of the teacher's matrix products
    :raises DataError: the proxy set is empty
    :raises TrainingError: the teacher's output is not finite
    """
    if not len(proxy):
        raise DataError("the proxy set is empty: raise data.proxy_size or data.public_share")
    key = fingerprint(
        teacher=teacher_fingerprint, proxy=examples_fingerprint(proxy.unlabeled()), temperature=float(temperature)
    )

    folder, count = cache_dir / "soft_labels", len(proxy)

    def label(rows: Tensor) -> Tensor:
        chunk = proxy.take(rows.numpy())
        with products(precision), autocast(precision, next(teacher.parameters()).device):
            found = predict(teacher, teacher.encode(chunk.texts, chunk.pairs), temperature=temperature)
        return checked_finite(found, rows)

    def make() -> Tensor:
        order, done, parts = longest_first(proxy), 0, []
        for rows in torch.split(order, _CHUNK):
            path = folder / f"{key}.{done}-{done + len(rows)}.part"
            parts.append(stored_part(path, "soft labels", partial(label, rows), partial(_check, len(rows))))
            done += len(rows)
            progress(done, count)
        labels = torch.cat(parts)
        return torch.empty_like(labels).index_copy_(0, order, labels)

    labels = stored_array(folder / f"{key}.npy", "soft labels", make, partial(_check, count))
    for part in folder.glob(f"{key}.*.part"):
        part.unlink(missing_ok=True)
    return labels


def longest_first(examples: Examples) -> Tensor:
    """Return the positions of the examples in order of decreasing length of their texts, int64 ``[n]``.

    The length is in UTF-8 bytes, which follows the number of tokens more closely than that of characters: three bytes
    of Chinese, or about four of English, are a token.
    """
    sides = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    sizes = torch.tensor([[len(text.encode("utf-8", "surrogatepass")) for text in side] for side in sides])
    return torch.argsort(sizes.sum(dim=0), descending=True, stable=True)


def _check(count: int, stored: Tensor) -> None:
    """Raise ValueError unless ``stored`` is probabilities of ``count`` examples."""
    if stored.dim() != 2 or len(stored) != count:
        raise ValueError(f"it contains {tuple(stored.shape)}, not ({count}, classes)")
    if not torch.allclose(stored.sum(dim=1), torch.ones(()), rtol=0.0, atol=_SUM_TOLERANCE):
        raise ValueError("its rows are not probabilities")


def encoded_in_chunks(
    teacher: TextModel, examples: Examples, progress: Callable[[int, int], None]
) -> Iterator[Encoded]:
    """Yield encoded examples in chunks; ``progress`` is called with (examples done, total) after each chunk."""
    for start in range(0, len(examples), _CHUNK):
        stop = min(start + _CHUNK, len(examples))
        pairs = None if examples.pairs is None else examples.pairs[start:stop]
        yield teacher.encode(examples.texts[start:stop], pairs)
        progress(stop, len(examples))


def checked_finite(outputs: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return ``outputs`` ``[n, ...]``; raise TrainingError, naming the first example, if they are not finite.

    :param rows: position of each example in the proxy set, int64 ``[n]``; None: in order
    """
    finite = torch.isfinite(outputs).flatten(1).all(dim=1)
    if not bool(finite.all()):
        row = int((torch.arange(len(finite)) if rows is None else rows)[~finite].min())
        raise TrainingError(f"the teacher's output on proxy example {row} is not finite: its training diverged")
    return outputs
