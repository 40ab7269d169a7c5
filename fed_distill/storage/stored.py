"""Cache of expensive arrays on disk.

Arrays are memory-mapped, so that processes on one machine share them. A damaged file is reported in the log and
computed again.
"""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fed_distill.storage.files import write_atomic
from fed_distill.storage.sealed import check_end, checksum

logger = logging.getLogger(__name__)


def stored_array(path: Path, what: str, make: Callable[[], Tensor], check: Callable[[Tensor], None]) -> Tensor:
    """Load a float32 tensor from ``path``, or compute and store it.

    :param path: file of the tensor
    :param what: description for the log
    :param make: computes the tensor
    :param check: raises ValueError if a stored tensor is not the expected one
    """
    found = _usable(path, what, check)
    if found is None:
        _write(path, make())
        found = _read(path, check)
    return found


def stored_part(path: Path, what: str, make: Callable[[], Tensor], check: Callable[[Tensor], None]) -> Tensor:
    """Load or compute and store a part of an array, as `stored_array`.

    Whoever completes the array deletes its parts, so another process that computes it must not rely on the file.
    """
    found = _usable(path, what, check)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _usable(path: Path, what: str, check: Callable[[Tensor], None]) -> Tensor | None:
    """Load a stored tensor; None if there is none, or, with a warning, if it cannot be used."""
    if not path.exists():
        return None
    try:
        return _read(path, check)
    except (OSError, EOFError, ValueError) as error:
        logger.warning("the stored %s in %s cannot be used and will be recomputed: %s", what, path, error)
        return None


def _write(path: Path, made: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, made.numpy(), allow_pickle=False)
    content.write(checksum(content.getvalue(), path))
    write_atomic(path, content.getvalue())


def _read(path: Path, check: Callable[[Tensor], None]) -> Tensor:
    """Map the file copy-on-write: torch requires writable memory, and writes must not reach the file."""
    check_end(path)
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.dtype != np.float32:
        raise ValueError(f"it holds {array.dtype} {array.shape}, not float32")
    tensor = torch.from_numpy(array)
    check(tensor)
    return tensor
