"""Where a run keeps what is done on a seed: a folder for each federation, control, level and student of the server.

``checkpoint/seed-N/KIND/NAME/`` keeps the kinds apart, so that no name of one is taken for another's. Each file says
which part it is of, since its checksum covers its own name and its folder's, and neither kind nor seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fed_distill.errors import CheckpointError
from fed_distill.storage.checkpoints import AGAIN, read_checkpoint, write_checkpoint
from fed_distill.storage.files import as_file_name, replace_folder, write_atomic
from fed_distill.storage.versions import CHECKPOINT_LAYOUT

CHECKPOINT = "checkpoint"
"""The folder in a run's folder."""
_LAYOUT = "LAYOUT"

Kind = Literal["server", "control", "federation", "level"]
_FOLDERS: Mapping[Kind, str] = {
    "server": "server",
    "control": "controls",
    "federation": "federations",
    "level": "levels",
}


@dataclass(frozen=True)
class RunPart:
    """What a run keeps of one federation, control, level of the chain, or student of the server.

    state: the run's ``checkpoint`` folder.
    """

    state: Path
    seed: int
    kind: Kind
    name: str

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.state / f"seed-{self.seed}" / _FOLDERS[self.kind] / as_file_name(self.name)

    @property
    def rounds(self) -> Path:
        """The state after the last finished round, from which a federation goes on."""
        return self.folder / "rounds.safetensors"

    @property
    def final(self) -> Path:
        """The weights that were measured."""
        return self.folder / "final.safetensors"

    @property
    def outcome(self) -> Path:
        """What was measured."""
        return self.folder / "outcome.json"

    def write(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """As ``write_checkpoint``, for a file of this part."""
        write_checkpoint(path, tensors, {**values, "part": self._part})

    def read(self, path: Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """As ``read_checkpoint``; CheckpointError for a file of another part too."""
        found = read_checkpoint(path, remedy)
        if found is not None:
            self.check(path, found[1].get("part"), remedy)
        return found

    def check(self, path: Path, part: Any, remedy: str = AGAIN) -> None:
        """CheckpointError unless a file says that it is of this ``part``: kind, name and seed."""
        if part != self._part:
            raise CheckpointError(f"{path} is not of {self.kind} {self.name} on seed {self.seed}; {remedy}")

    @property
    def _part(self) -> list[str | int]:
        return [self.kind, self.name, self.seed]


def mark_layout(state: Path) -> None:
    """Make the ``checkpoint`` folder of a run, unless there is one, with a note in it of how it is laid out."""
    if not state.exists():
        replace_folder(state, lambda folder: write_atomic(folder / _LAYOUT, f"{CHECKPOINT_LAYOUT}\n"))


def check_layout(state: Path) -> None:
    """CheckpointError for a ``checkpoint`` folder that another version of fed-distill laid out."""
    if not state.exists():
        return
    path = state / _LAYOUT
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    if found != str(CHECKPOINT_LAYOUT):
        raise CheckpointError(
            f"{path} does not say {CHECKPOINT_LAYOUT}: the folder was written by another version of fed-distill, which "
            "alone can go on with it. Use that version, or start again with another --name"
        )
