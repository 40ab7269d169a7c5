"""What is kept of each merchant between rounds: by its site in the state folder, by the server beside its checkpoints.

Kept by round, the newest two: a run that is killed in the middle of a round trains that round again, and then
needs what was there before it.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fed_distill.results.files import as_file_name
from fed_distill.runtime.checkpoints import read_checkpoint, write_checkpoint


class MerchantStore:
    """Weights by (arm of the experiment, seed, merchant, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, arm: str, seed: int, merchant: str, round: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a merchant's weights after ``round``; older ones than the round before are dropped."""
        place = self._place(arm, seed, merchant)
        write_checkpoint(place / _file(round), weights, {"round": round})
        for path in sorted(place.glob("*.safetensors"))[:-2]:
            path.unlink()

    def load(self, arm: str, seed: int, merchant: str, before: int) -> dict[str, Tensor] | None:
        """The weights kept last in a round earlier than ``before``; None if there are none."""
        newest = self.newest(arm, seed, merchant, before)
        found = read_checkpoint(self._place(arm, seed, merchant) / _file(newest)) if newest else None
        return found[0] if found else None

    def newest(self, arm: str, seed: int, merchant: str, before: int) -> int:
        """The last round earlier than ``before`` of which anything is kept; 0 if there is none."""
        rounds = (int(path.stem) for path in self._place(arm, seed, merchant).glob("*.safetensors"))
        return max((number for number in rounds if number < before), default=0)

    def _place(self, arm: str, seed: int, merchant: str) -> Path:
        return self._folder / f"seed-{seed}" / as_file_name(arm) / as_file_name(merchant)


def _file(round: int) -> str:
    return f"{round:06d}.safetensors"
