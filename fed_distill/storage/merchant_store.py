"""What is kept of each merchant between rounds: by its site in the state folder, by the server beside its checkpoints.

Kept by round, the newest two: a run that is killed in the middle of a round trains that round again, and then
needs what was there before it. Of later rounds nothing is: they are of an earlier run of this name.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fed_distill.errors import CheckpointError
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.storage.files import as_file_name
from fed_distill.storage.fingerprint import fingerprint

STUDENTS, CODING = "sites", "coding"
"""Folders of stores in a site's state folder: students, and what a chain of transport owes or has sent."""
REMEDY = "put back a copy of it"
_SUFFIX, _OWNER = ".safetensors", ("arm", "merchant")


class MerchantStore:
    """Weights by (arm of the experiment, seed, merchant, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, arm: str, seed: int, merchant: str, round: int, weights: Mapping[str, Tensor]) -> None:
        """Keep a merchant's weights after ``round``; what is older than the last before it, or later, is dropped."""
        place = self._place(arm, seed, merchant)
        of = {"store": self._folder.name, "seed": seed, "arm": arm, "merchant": merchant}
        write_checkpoint(place / _file(round), weights, of)
        kept = sorted(number for number in _rounds(place) if number <= round)[-2:]
        for number in set(_rounds(place)) - set(kept):
            (place / _file(number)).unlink()

    def load(self, arm: str, seed: int, merchant: str, before: int) -> dict[str, Tensor] | None:
        """The weights kept last in a round earlier than ``before``; None if there are none. CheckpointError naming the
        file if it is not as it was written, or another arm's, seed's or merchant's."""
        place = self._place(arm, seed, merchant)
        newest = _newest(place, before)
        return _read(place / _file(newest)) if newest else None

    def newest(self, arm: str, seed: int, merchant: str, before: int) -> int:
        """The last round earlier than ``before`` of which anything is kept; 0 if there is none."""
        return _newest(self._place(arm, seed, merchant), before)

    def rounds(self, arm: str, seed: int, before: int) -> dict[str, int]:
        """The same for each merchant of which anything is kept, as ``as_file_name`` calls them."""
        folder = self._arm(arm, seed)
        return {name: newest for name in sorted(_names(folder)) if (newest := _newest(folder / name, before))}

    def check(self, arm: str, seed: int, before: int, least: Mapping[str, int], remedy: str = REMEDY) -> None:
        """CheckpointError naming a file that ``load`` would read and that is not as it was written, or that is missing:
        of each merchant in ``least`` something must be kept of that round or a later one."""
        found = self.rounds(arm, seed, before)
        for merchant in sorted(least.keys() | found.keys()):
            place, newest = self._arm(arm, seed) / merchant, found.get(merchant, 0)
            if newest < least.get(merchant, 0):
                raise CheckpointError(f"{place / _file(least[merchant])} is missing; {remedy}")
            _read(place / _file(newest), remedy)

    def _arm(self, arm: str, seed: int) -> Path:
        return self._folder / f"seed-{seed}" / as_file_name(arm)

    def _place(self, arm: str, seed: int, merchant: str) -> Path:
        return self._arm(arm, seed) / as_file_name(merchant)


@dataclass(frozen=True)
class Stores:
    """All that is kept of the merchants of one federation below ``state``, which is its sites' too in a simulation.

    arms: by what name each store keeps it.
    """

    state: Path
    seed: int
    arms: Mapping[str, str]

    def rounds(self, before: int) -> dict[str, dict[str, int]]:
        """As ``MerchantStore.rounds``, by store."""
        return {
            name: MerchantStore(self.state / name).rounds(arm, self.seed, before) for name, arm in self.arms.items()
        }

    def check(self, before: int, least: Mapping[str, Mapping[str, int]], remedy: str = REMEDY) -> None:
        """CheckpointError unless all is there that ``rounds`` gave, or later, and as it was written."""
        for name, arm in self.arms.items():
            MerchantStore(self.state / name).check(arm, self.seed, before, least.get(name, {}), remedy)


def kept_as(arm: str, unit: str, settings: Mapping[str, Any] | None) -> str:
    """By what name the state that merchants keep for an arm is known. That of a protected arm is of its very settings:
    a student that was trained without this noise must not come in from another run of the same name. ``settings``: None
    of an arm that is not protected; its name has no two slashes, and is not that of one that is."""
    return arm if settings is None else f"{arm}/{unit}/{fingerprint(settings=settings)}"


def drop_stores(state: Path) -> None:
    """Drop what is kept for a next round: of a run that is finished, nobody reads it again."""
    for name in (STUDENTS, CODING):
        if (state / name).exists():
            shutil.rmtree(state / name)


def _newest(place: Path, before: int) -> int:
    return max((number for number in _rounds(place) if number < before), default=0)


def _rounds(place: Path) -> list[int]:
    stems = [name.removesuffix(_SUFFIX) for name in _names(place) if name.endswith(_SUFFIX)]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing if there is none. Faster than ``glob``: there may be a folder for each of many."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, remedy: str = REMEDY) -> dict[str, Tensor] | None:
    """What was kept in a merchant's file; CheckpointError if it is not what ``save`` wrote there."""
    found = read_checkpoint(path, remedy)
    if found is None:
        return None
    of = found[1]
    where = Path(str(of.get("store")), f"seed-{of.get('seed')}", *(as_file_name(str(of.get(name))) for name in _OWNER))
    if path.parent.parts[-len(where.parts) :] != where.parts:
        raise CheckpointError(f"{path} is what {where} should hold; {remedy}")
    return found[0]


def _file(round: int) -> str:
    return f"{round:06d}{_SUFFIX}"
