"""Models without memory for their weights, to compare sizes from a file or a message before anything is allocated."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fed_distill.errors import ModelError
from fed_distill.models.building import rebuild
from fed_distill.models.weights import Weights

MOST_WEIGHTS = 5_000
"""Maximum number of weight tensors that a constructor may create without memory: each takes some kilobytes of Python
objects on any device. Networks of 126 layers have about 1,200."""


@contextmanager
def without_memory() -> Iterator[None]:
    """Let constructors create weights on torch's ``meta`` device: shapes and types, but no values.

    What a constructor allocates besides tensors, such as lists, is not limited; that holds for custom models too.

    :raises ModelError: a constructor creates more than ``MOST_WEIGHTS`` weights, as with a billion layers
    """
    thread, created = threading.get_ident(), 0

    def count(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        nonlocal created
        created += threading.get_ident() == thread  # the hook is called for modules of all threads
        if created > MOST_WEIGHTS:
            raise ModelError(f"it has more than {MOST_WEIGHTS:,} weight tensors: reduce its number of layers")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        hook.remove()


def check_shapes(kind: str, settings: Mapping[str, Any], weights: Weights) -> None:
    """Compare ``weights`` with those of the model that ``kind`` and ``settings`` describe, without building it.

    :raises ModelError: the settings are invalid, or the weights differ in names or shapes
    """
    with without_memory():
        wanted = {name: tuple(value.shape) for name, value in rebuild(kind, settings).state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ModelError(
                f"weight {name!r} is {_size(given, name)} in the file and {_size(wanted, name)} by settings"
            )


def _size(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"
