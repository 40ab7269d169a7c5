"""Which weights of a student merchants leave alone: by pattern, or the embeddings of a transformer.

What is frozen is not trained, not noised and not sent.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from fed_distill.errors import ConfigError
from fed_distill.models.base import TextModel
from fed_distill.models.transformer import Transformer


def freeze(student: TextModel, patterns: Sequence[str] | None) -> TextModel:
    """Freeze the weights whose names match any of ``patterns`` (``bag.*``, ``*.bias``); returns ``student``.

    None freezes every embedding of a transformer, as is usual under DP (their noise would drown what they learn), and
    nothing of another student. Raise ConfigError for a pattern that matches nothing, or if nothing is left to train.
    """
    names = [name for name, _ in student.named_parameters()]
    if patterns is None:
        chosen = _embeddings(student) if isinstance(student, Transformer) else set()
    else:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"freeze: no weight's name matches {pattern!r}; there are {', '.join(names)}")
        chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if len(chosen) == len(names):
        raise ConfigError("freeze leaves no weight to train: name fewer patterns")
    for name, value in student.named_parameters():
        value.requires_grad_(name not in chosen)
    return student


def _embeddings(student: nn.Module) -> set[str]:
    return {
        f"{path}.{name}"
        for path, module in student.named_modules()
        if isinstance(module, nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    }
