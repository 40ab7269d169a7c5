"""Where a stopped run goes on: tensors and a few JSON values in one file, replaced atomically.

One file holds both, so that they cannot disagree after a crash. Safetensors, so that nothing is unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fed_distill.errors import CheckpointError
from fed_distill.results.files import space_for, strict_json, write_atomic


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Replace the checkpoint at ``path`` by ``tensors`` and JSON-ready ``values``; CheckpointError, with the old one as
    it was, if the disk is full."""
    with space_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = save(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        metadata={"values": strict_json(values, str(path))},
    )
    write_atomic(path, content)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a checkpoint; None if there is none, CheckpointError naming the file if it cannot be read."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            return tensors, json.loads(file.metadata()["values"])
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to train this part again") from error
