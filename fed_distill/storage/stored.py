"""Arrays on disk that are expensive to make: read if they are there and sound, else made and kept.

They are memory-mapped when read, so that many processes of one machine share them. A file that is torn, or not as it
was written, is reported in the log and made again.
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
    """The float32 tensor in the file ``path``, or ``make`` it and keep it there.

    ``what`` names it in the log. ``check`` raises ValueError for a stored tensor that cannot be what is asked for.
    """
    if path.exists():
        try:
            return _read(path, check)
        except (OSError, EOFError, ValueError) as error:
            logger.warning("the stored %s in %s cannot be used and are computed again: %s", what, path, error)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.save(content, made.numpy(), allow_pickle=False)
    content.write(checksum(content.getvalue(), path))
    write_atomic(path, content.getvalue())
    return _read(path, check)


def _read(path: Path, check: Callable[[Tensor], None]) -> Tensor:
    """Map the file copy-on-write: torch wants writable memory, and writes to it must not reach the file."""
    check_end(path)
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if array.dtype != np.float32:
        raise ValueError(f"it holds {array.dtype} {array.shape}, not float32")
    tensor = torch.from_numpy(array)
    check(tensor)
    return tensor
