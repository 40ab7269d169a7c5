"""What the federations of a run have released, kept apart from their checkpoints, so that an old copy of one is found.

At real sites, for units whose noise the server adds. Merchants pay for a federation once, by the name that it has here.
If an older checkpoint was put back, its rounds would be released a second time, with other answers and other noise,
and nobody would pay for it: the federation does not go on from there.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_distill.errors import CheckpointError
from fed_distill.storage.files import make_folder, write_atomic
from fed_distill.storage.sealed import read_sealed_json, sealed_json

NOISE_KEY = "noise.key"
"""The server's secret, in the folder of its runs."""
RELEASED = "released.json"


@dataclass(frozen=True)
class Released:
    """The account of one run, in the file at ``path``."""

    path: Path

    def name(self, title: str) -> str:
        """What names the federation ``title``: random, the same whenever the run goes on."""
        known = self._read()
        if title not in known:
            known[title] = {"federation": secrets.token_hex(16), "round": 0}
            self._write(known)
        return str(known[title]["federation"])

    def check(self, title: str, round: int) -> None:
        """Raise CheckpointError if more rounds were released than the checkpoint's ``round`` says."""
        newest = int(self._read().get(title, {"round": 0})["round"])
        if round < newest:
            raise CheckpointError(
                f"{self.path}: {title} has released round {newest} and its checkpoint is of round {round}, as if an "
                "older copy had been put back. Its rounds cannot be released twice: start again with another --name, "
                "which merchants pay for anew"
            )

    def note(self, title: str, round: int) -> None:
        """Write down that ``round`` is about to be released."""
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
                f"{error}, and without it nobody knows what was released: start again with another --name"
            ) from error

    def _write(self, known: dict[str, dict[str, Any]]) -> None:
        make_folder(self.path.parent)
        write_atomic(self.path, sealed_json(known, self.path), private=True)
