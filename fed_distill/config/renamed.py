"""Renamed keys: an experiment with an old key is rejected with a message that gives the new one."""

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
"""New keys by old key; several if the meaning of the old key was split."""


NOTES: Mapping[str, str] = {
    "adaptation.learning_rate_scale": "the rate itself, no longer a factor: multiply the old value by "
    "training.server.learning_rate",
}
"""What else has changed about a key: what its value means."""

REMOVED: Mapping[str, str] = {
    "runtime.workers": "runtime.threads is the number of cores that training uses",
}
"""Keys without a successor, and what to use."""


def check_renamed(tables: Mapping[str, Any], within: str = "") -> None:
    """Reject renamed and removed keys in an experiment's ``tables``.

    :param within: dotted name of the table that ``tables`` are part of; empty for a whole experiment
    :raises ValueError: the first old key, with its new name
    """
    for old in _keys(tables, within):
        if old in RENAMED:
            note = f", {NOTES[old]}" if old in NOTES else ""
            raise ValueError(f"{old} is now {_listed(RENAMED[old])}{note}")
        if old in REMOVED:
            raise ValueError(f"{old} was removed: {REMOVED[old]}")


def _keys(tables: Mapping[str, Any], within: str) -> Iterator[str]:
    """Yield the dotted keys of tables, the keys in a table before the table's own."""
    for name, value in tables.items():
        key = f"{within}.{name}" if within else str(name)
        if isinstance(value, Mapping):
            yield from _keys(value, key)
        yield key


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}: set the ones you need"
