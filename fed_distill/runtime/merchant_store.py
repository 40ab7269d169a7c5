"""What is kept of each merchant between rounds: by its site in the state folder, by the server beside its checkpoints.

Kept by round, the newest two: a run that is killed in the middle of a round trains that round again, and then
needs what was there before it. Of later rounds nothing is: they are of an earlier run of this name.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fed_distill.results.files import as_file_name
from fed_distill.runtime.checkpoints import read_checkpoint, write_checkpoint

STUDENTS, CODING = "sites", "coding"
"""Folders of stores in a site's state folder: students, and what a chain of transport owes or has sent."""


class MerchantStore:
    """Weights by (arm of the experiment, seed, merchant, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, arm: str, seed: int, merchant: str, round: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a merchant's weights after ``round``; what is older than the last before it, or later, is dropped."""
        place = self._place(arm, seed, merchant)
        write_checkpoint(place / _file(round), weights, {"round": round})
        kept = sorted(number for number in self._rounds(place) if number <= round)[-2:]
        for number in set(self._rounds(place)) - set(kept):
            (place / _file(number)).unlink()

    def load(self, arm: str, seed: int, merchant: str, before: int) -> dict[str, Tensor] | None:
        """The weights kept last in a round earlier than ``before``; None if there are none."""
        newest = self.newest(arm, seed, merchant, before)
        found = read_checkpoint(self._place(arm, seed, merchant) / _file(newest)) if newest else None
        return found[0] if found else None

    def newest(self, arm: str, seed: int, merchant: str, before: int) -> int:
        """The last round earlier than ``before`` of which anything is kept; 0 if there is none."""
        rounds = self._rounds(self._place(arm, seed, merchant))
        return max((number for number in rounds if number < before), default=0)

    def _rounds(self, place: Path) -> list[int]:
        return [int(path.stem) for path in place.glob("*.safetensors")]

    def _place(self, arm: str, seed: int, merchant: str) -> Path:
        return self._folder / f"seed-{seed}" / as_file_name(arm) / as_file_name(merchant)


def drop_stores(state: Path) -> None:
    """Drop what is kept for a next round: of a run that is finished, nobody reads it again."""
    for name in (STUDENTS, CODING):
        if (state / name).exists():
            shutil.rmtree(state / name)


def _file(round: int) -> str:
    return f"{round:06d}.safetensors"
