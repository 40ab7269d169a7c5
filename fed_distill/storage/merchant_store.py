"""State of each merchant between rounds.

A site stores it in its state folder, the server beside its checkpoints.

The state after each of the two newest rounds is kept: a run that is killed during a round repeats it, and needs the
state from before. The state of later rounds belongs to a previous run of the same name and is dropped.
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
"""Folders of stores in a site's state folder: students, and residuals and references of codec stages."""
REMEDY = "put back a copy of it"
_SUFFIX, _OWNER = ".safetensors", ("arm", "merchant")


class MerchantStore:
    """Stores weights by (arm of the experiment, seed, merchant, round)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, arm: str, seed: int, merchant: str, round: int, weights: Mapping[str, Tensor]) -> None:
        """Store a merchant's weights after ``round``; drop those of later rounds and all but one of earlier rounds."""
        place = self._place(arm, seed, merchant)
        of = {"store": self._folder.name, "seed": seed, "arm": arm, "merchant": merchant}
        write_checkpoint(place / _file(round), weights, of)
        kept = sorted(number for number in _rounds(place) if number <= round)[-2:]
        for number in set(_rounds(place)) - set(kept):
            (place / _file(number)).unlink()

    def load(self, arm: str, seed: int, merchant: str, before: int) -> dict[str, Tensor] | None:
        """Load the newest weights from before a round.

        :param before: round that begins
        :returns: the weights, or None if there are none
        :raises CheckpointError: the file is damaged or belongs to another arm, seed or merchant
        """
        place = self._place(arm, seed, merchant)
        newest = _newest(place, before)
        return _read(place / _file(newest)) if newest else None

    def newest(self, arm: str, seed: int, merchant: str, before: int) -> int:
        """Return the newest round earlier than ``before`` that has stored weights; 0 if there is none."""
        return _newest(self._place(arm, seed, merchant), before)

    def rounds(self, arm: str, seed: int, before: int) -> dict[str, int]:
        """Return ``newest`` for each merchant with stored weights, by file name (``as_file_name``)."""
        folder = self._arm(arm, seed)
        return {name: newest for name in sorted(_names(folder)) if (newest := _newest(folder / name, before))}

    def check(self, arm: str, seed: int, before: int, least: Mapping[str, int], remedy: str = REMEDY) -> None:
        """Verify all files that ``load`` would read.

        :param least: by merchant, the earliest round that its newest file may be from
        :param remedy: end of the error message: what the user should do
        :raises CheckpointError: a file is damaged or missing
        """
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
    """The stores of one federation below the folder ``state``; in a simulation, its sites share this folder.

    arms: name of the arm in each store.
    """

    state: Path
    seed: int
    arms: Mapping[str, str]

    def rounds(self, before: int) -> dict[str, dict[str, int]]:
        """Return ``MerchantStore.rounds`` of each store."""
        return {
            name: MerchantStore(self.state / name).rounds(arm, self.seed, before) for name, arm in self.arms.items()
        }

    def check(self, before: int, least: Mapping[str, Mapping[str, int]], remedy: str = REMEDY) -> None:
        """Verify each store; see ``MerchantStore.check``.

        :param least: result of an earlier call of ``rounds``
        """
        for name, arm in self.arms.items():
            MerchantStore(self.state / name).check(arm, self.seed, before, least.get(name, {}), remedy)


def kept_as(arm: str, unit: str, settings: Mapping[str, Any] | None) -> str:
    """Return the name under which merchants store the state of an arm.

    For an arm with differential privacy the name contains a fingerprint of its settings: a run must not load a student
    that another run of the same name trained with less noise.

    :param settings: privacy settings, or None without differential privacy; the name then has no two slashes, and so
        differs from that of any private arm
    """
    return arm if settings is None else f"{arm}/{unit}/{fingerprint(settings=settings)}"


def drop_stores(state: Path) -> None:
    """Delete the merchants' state of a finished run."""
    for name in (STUDENTS, CODING):
        if (state / name).exists():
            shutil.rmtree(state / name)


def _newest(place: Path, before: int) -> int:
    return max((number for number in _rounds(place) if number < before), default=0)


def _rounds(place: Path) -> list[int]:
    stems = [name.removesuffix(_SUFFIX) for name in _names(place) if name.endswith(_SUFFIX)]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _names(folder: Path) -> list[str]:
    """List a folder; empty if it does not exist. Faster than ``glob``, as there may be one folder per merchant."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, remedy: str = REMEDY) -> dict[str, Tensor] | None:
    """Read the file of a merchant; raise CheckpointError if it is damaged."""
    found = read_checkpoint(path, remedy)
    if found is None:
        return None
    of = found[1]
    where = Path(str(of.get("store")), f"seed-{of.get('seed')}", *(as_file_name(str(of.get(name))) for name in _OWNER))
    if path.parent.parts[-len(where.parts) :] != where.parts:
        raise CheckpointError(f"{path} contains {where}, not its own content; {remedy}")
    return found[0]


def _file(round: int) -> str:
    return f"{round:06d}{_SUFFIX}"
