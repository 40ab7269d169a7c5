"""Keys that have another name than they once had: whoever uses an old one is told the new one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_OPTIMIZER = ("optimizer", "learning_rate", "momentum", "batch_size")
_OF_BOTH = ("schedule", "warmup_share", "weight_decay", "clip_norm")

RENAMED: Mapping[str, tuple[str, ...]] = {
    **{f"training.{key}": (f"training.merchants.{key}",) for key in _OPTIMIZER},
    **{f"training.{key}": (f"training.merchants.{key}", f"training.server.{key}") for key in _OF_BOTH},
    **{f"training.server_{key}": (f"training.server.{key}",) for key in (*_OPTIMIZER, "epochs", "temperature")},
    **{f"training.pooled_{key}": (f"training.pooled.{key}",) for key in ("learning_rate", "epochs")},
    "training.local_epochs": ("training.local.epochs",),
    **{
        f"{table}.masked_{key}": (f"{table}.masked.{key}",)
        for table in ("teacher", "student")
        for key in ("epochs", "learning_rate")
    },
    "adaptation.learning_rate_scale": ("adaptation.learning_rate",),
    **{f"privacy.{key}": (f"privacy.training.{key}",) for key in ("optimizer", "learning_rate")},
    "federation.max_update_norm": ("federation.max_norm_ratio",),
    "poisoning.share": ("byzantine.fraction",),
    "poisoning.attack": ("byzantine.attack",),
    "poisoning.options": ("byzantine.options",),
    "poisoning": ("byzantine",),
}
"""Each old key, and the one that has taken its place, or the several, each of which has a part of its meaning."""


def check_renamed(tables: Mapping[str, Any], within: str = "") -> None:
    """ValueError, naming its new name, for the first old key of an experiment's ``tables``, or of one ``within`` it."""
    for old in _keys(tables, within):
        if old in RENAMED:
            raise ValueError(f"{old} is now {_listed(RENAMED[old])}")


def _keys(tables: Mapping[str, Any], within: str) -> Iterator[str]:
    """Dotted keys of tables, those in a table before its own."""
    for name, value in tables.items():
        key = f"{within}.{name}" if within else str(name)
        if isinstance(value, Mapping):
            yield from _keys(value, key)
        yield key


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}: set those that you mean"
