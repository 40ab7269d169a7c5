"""Selection of a student's weights by name patterns, and freezing of weights at merchants.

Frozen weights are not trained, not noised and not sent in uplinks; downlinks have whole students.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import groupby

from torch import nn

from fed_distill.errors import ConfigError
from fed_distill.models.adapters import is_adapter
from fed_distill.models.base import TextModel
from fed_distill.models.pair import Pair, plain_name
from fed_distill.models.transformer import Transformer

_NUMBERED = re.compile(r"(.*?\.\d+)\.")
_HEADS = ("network.classifier.*", "network.pre_classifier.*", "network.bert.pooler.*")
"""Modules of a transformer after its layers: pooler and classification head."""


def freeze_base(student: TextModel) -> TextModel:
    """Freeze all weights of a student except adapters and head, and return it.

    A student without adapters is not changed; the two of a pair are treated separately.
    """
    for part in (student.shared, student.own) if isinstance(student, Pair) else (student,):
        base = _base(part)
        for name, value in part.named_parameters():
            value.requires_grad_(name not in base)
    return student


def freeze(student: TextModel, patterns: Sequence[str] | None) -> TextModel:
    """Freeze the weights whose names match any of ``patterns`` (``bag.*``, ``*.bias``), and return ``student``.

    None freezes every embedding of a transformer, as is usual with DP, where noise would dominate their gradients, and
    nothing of other students. The base of a student with adapters is frozen as well. The two of a pair are treated
    separately.

    :raises ConfigError: a pattern matches no weight, or no trainable weight remains
    """
    if isinstance(student, Pair):
        freeze(student.shared, patterns)
        freeze(student.own, patterns)
        return student
    names = [name for name, _ in student.named_parameters()]
    if patterns is None:
        chosen = _embeddings(student) if isinstance(student, Transformer) else set()
    else:
        chosen = matched(student, patterns, "freeze")
    chosen |= _base(student)
    if len(chosen) == len(names):
        raise ConfigError("freeze matches all weights, so that none is trained: remove patterns")
    for name, value in student.named_parameters():
        value.requires_grad_(name not in chosen)
    return student


def matched(student: TextModel, patterns: Iterable[str], key: str) -> set[str]:
    """Return the weights that match any of ``patterns``; raise ConfigError with ``key`` if one matches none."""
    names = [name for name, _ in student.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(plain_name(student, name), pattern)}
        if not found:
            raise ConfigError(f"{key}: no weight matches {pattern!r}; the weights are {', '.join(names)}")
        chosen |= found
    return chosen


def layers_of(student: TextModel) -> tuple[frozenset[str], ...]:
    """Return the student's weights by layer, from input to output: weights before its numbered layers, each layer, and
    weights after them; for a student without numbered layers, its modules in order."""
    names = [name for name, _ in student.named_parameters()]
    numbered = [match[1] if (match := _NUMBERED.match(name)) else "" for name in names]
    if not any(numbered):
        return tuple(frozenset(group) for _, group in groupby(names, lambda name: name.partition(".")[0]))
    first = numbered.index(next(filter(None, numbered)))
    keys = ["before" if not key and place < first else key or "after" for place, key in enumerate(numbered)]
    return tuple(
        frozenset(name for name, own in zip(names, keys, strict=True) if own == key) for key in dict.fromkeys(keys)
    )


@contextmanager
def frozen(student: TextModel, names: Collection[str]) -> Iterator[None]:
    """Freeze the weights ``names`` within the context."""
    held = [value for name, value in student.named_parameters() if name in names and value.requires_grad]
    for value in held:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in held:
            value.requires_grad_(True)


def _base(student: TextModel) -> set[str]:
    """Return all weights except adapters and head, for a student with adapters; otherwise none."""
    names = [name for name, _ in student.named_parameters()]
    if not any(map(is_adapter, names)):
        return set()
    return {name for name in names if not (is_adapter(name) or any(fnmatchcase(name, head) for head in _HEADS))}


def _embeddings(student: nn.Module) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module in student.named_modules()
        if isinstance(module, nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
        if not is_adapter(f"{path}.{name}")
    }
