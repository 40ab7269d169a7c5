"""What a merchant keeps between rounds, in the site's state folder.

Kept by round, the newest two: a run that is killed in the middle of a round trains that round again, and then
needs what was there before it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from fed_distill.runtime.checkpoints import read_checkpoint, write_checkpoint

_LONGEST = 150


class MerchantStore:
    """Weights by (arm of the experiment, seed, merchant, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, arm: str, seed: int, merchant: str, round: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a merchant's weights after ``round``; older ones than the round before are dropped."""
        place = self._place(arm, seed, merchant)
        write_checkpoint(place / f"{round:06d}.safetensors", weights, {"round": round})
        for path in sorted(place.glob("*.safetensors"))[:-2]:
            path.unlink()

    def load(self, arm: str, seed: int, merchant: str, before: int) -> dict[str, Tensor] | None:
        """The weights kept last in a round earlier than ``before``; None if there are none."""
        kept = [
            path for path in sorted(self._place(arm, seed, merchant).glob("*.safetensors")) if int(path.stem) < before
        ]
        found = read_checkpoint(kept[-1]) if kept else None
        return found[0] if found else None

    def _place(self, arm: str, seed: int, merchant: str) -> Path:
        return self._folder / f"seed-{seed}" / _folder_name(arm) / _folder_name(merchant)


def _folder_name(name: str) -> str:
    """``name`` as one folder, never ``.`` or ``..``; a long one is cut and told apart by its hash."""
    quoted = quote(name, safe="").replace(".", "%2E")
    if len(quoted) <= _LONGEST:
        return quoted
    return f"{quoted[:_LONGEST]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
