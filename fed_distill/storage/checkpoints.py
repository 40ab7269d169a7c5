"""Checkpoints: tensors and JSON values in one file, replaced atomically.

Both are in one file, so that they stay consistent after a crash. The format is safetensors, so nothing is unpickled.
The metadata contains a checksum of the content, the file name and the folder name, so that a damaged or misplaced file
is rejected.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fed_distill.errors import CheckpointError
from fed_distill.storage.files import space_for, strict_json, write_atomic
from fed_distill.storage.sealed import BROKEN, KEY, UNSEALED, started

_HEAD = "checkpoint"
AGAIN = "delete it to train this part again"


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], private: bool = False
) -> None:
    """Replace the checkpoint at ``path``.

    :param path: file to write
    :param tensors: tensors by name
    :param values: JSON-serializable values
    :param private: make the file readable for its owner only
    :raises CheckpointError: the disk is full; the previous checkpoint is unchanged
    """
    with space_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    told = json.loads(strict_json(values, str(path)))
    head = strict_json({KEY: _checksum(path, plain, told), "values": told}, str(path))
    content = save(plain, metadata={_HEAD: head})  # one entry: safetensors writes several in any order
    write_atomic(path, content, private)


def read_checkpoint(path: Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a checkpoint.

    :param path: file written by ``write_checkpoint``
    :param remedy: end of the error message: what the user should do
    :returns: tensors and values, or None if the file does not exist
    :raises CheckpointError: the file cannot be read or its checksum does not match
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
            metadata = file.metadata() or {}
        if _HEAD not in metadata:
            raise ValueError(UNSEALED)
        head = json.loads(metadata[_HEAD])
        if head[KEY] != _checksum(path, tensors, head["values"]):
            raise ValueError(BROKEN)
        return tensors, head["values"]
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {remedy}") from error


def _checksum(path: Path, tensors: Mapping[str, Tensor], values: Any) -> str:
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    hashed = started(path)
    hashed.update(json.dumps([values, shapes], sort_keys=True).encode())
    for name in names:
        hashed.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
