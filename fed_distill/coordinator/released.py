"""Record of released rounds, separate from the checkpoints, to detect a restored old checkpoint.

It is used with real sites, for units with noise at the server. Merchants are charged once for a federation, by its
identity in this record. After an older checkpoint is restored, its rounds would be released again, with other answers
and noise, but without a charge: such a federation is not resumed.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_distill.errors import CheckpointError
from fed_distill.storage.files import make_folder, write_atomic
from fed_distill.storage.sealed import read_sealed_json, sealed_json

NOISE_KEY = "noise.key"
"""File of the server's secret, in the folder of its runs."""
RELEASED = "released.json"


@dataclass(frozen=True)
class Released:
    """The record of one run, in the file at ``path``."""

    path: Path

    def name(self, title: str) -> str:
        """Return the random identity of the federation ``title``, which is kept when the run is resumed."""
        known = self._read()
        if title not in known:
            known[title] = {"federation": secrets.token_hex(16), "round": 0}
            self._write(known)
        return str(known[title]["federation"])

    def check(self, title: str, round: int) -> None:
        """Raise CheckpointError if later rounds than the checkpoint's ``round`` were released."""
        newest = int(self._read().get(title, {"round": 0})["round"])
        if round < newest:
            raise CheckpointError(
                f"{self.path}: {title} has released round {newest}, but its checkpoint is of round {round}, probably a "
                "restored older copy. Rounds cannot be released twice: start a new run with another --name, for which "
                "merchants are charged again"
            )

    def note(self, title: str, round: int) -> None:
        """Record ``round`` before its release."""
        known = self._read()
        known[title]["round"] = round
        self._write(known)

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        try:
            return read_sealed_json(self.path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; without it, released rounds are unknown: start a new run with another --name"
            ) from error

    def _write(self, known: dict[str, dict[str, Any]]) -> None:
        make_folder(self.path.parent)
        write_atomic(self.path, sealed_json(known, self.path), private=True)
