"""Weights of a student by pattern of their names, and which of them merchants leave alone.

What is frozen is not trained, not noised, and no part of an uplink; merchants are sent whole students.
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
"""Weights of a transformer that come after its layers: what its classes need of its own."""


def freeze_base(student: TextModel) -> TextModel:
    """Freeze what merchants leave alone of a student with adapters, all but these and its head; returns ``student``.

    Of a student without any nothing is frozen; of a pair each is taken by itself.
    """
    for part in (student.shared, student.own) if isinstance(student, Pair) else (student,):
        base = _base(part)
        for name, value in part.named_parameters():
            value.requires_grad_(name not in base)
    return student


def freeze(student: TextModel, patterns: Sequence[str] | None) -> TextModel:
    """Freeze the weights whose names match any of ``patterns`` (``bag.*``, ``*.bias``); returns ``student``.

    None freezes every embedding of a transformer, as is usual under DP (their noise would drown what they learn), and
    nothing of another student. Of one with adapters its base is frozen as well. Of a pair each is frozen by itself.
    Raise ConfigError for a pattern that matches nothing, or if nothing is left to train.
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
        raise ConfigError("freeze leaves no weight to train: name fewer patterns")
    for name, value in student.named_parameters():
        value.requires_grad_(name not in chosen)
    return student


def matched(student: TextModel, patterns: Iterable[str], key: str) -> set[str]:
    """Names of the weights that match any of ``patterns``; raise ConfigError naming ``key`` for one that none does."""
    names = [name for name, _ in student.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(plain_name(student, name), pattern)}
        if not found:
            raise ConfigError(f"{key}: no weight's name matches {pattern!r}; there are {', '.join(names)}")
        chosen |= found
    return chosen


def layers_of(student: TextModel) -> tuple[frozenset[str], ...]:
    """The student's weights by layer, from its input on: what comes before its numbered layers, each of these, and what
    comes after; of a student without any, its parts in their order."""
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
    """While entered, the weights called ``names`` are not trained."""
    held = [value for name, value in student.named_parameters() if name in names and value.requires_grad]
    for value in held:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in held:
            value.requires_grad_(True)


def _base(student: TextModel) -> set[str]:
    """Of a student with adapters all weights but these and its head; of another none."""
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
