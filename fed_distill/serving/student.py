"""A trained student in Python, computed by torch.

Calls are in batches, on one device, without gradients, and give equal results for equal arguments.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fed_distill.data.student_description import DESCRIPTION, StudentDescription
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.prediction import by_batches, predict, prepare
from fed_distill.models.student_folder import MODEL, load_saved_student
from fed_distill.models.towers import Towers
from fed_distill.registry import only_imports
from fed_distill.reporting.store import EXPERIMENT, STUDENT, writer
from fed_distill.serving.scorer import Probabilities, Scorer, Vectors
from fed_distill.storage.files import leads_out
from fed_distill.storage.fingerprint import fingerprint, hash_tensors

_CHUNK = 8192
"""Texts that are encoded at once: their tokens are held in memory."""
_BATCH = 256
"""Texts in one forward pass."""
_NAMED = 8
"""Number of classes up to which ``repr`` names them."""


class Student(Scorer):
    """A trained student and its task; ``load_student`` loads one.

    model: the network, in evaluation mode. task: name, classes, gains.

    >>> student = load_student("runs/quickstart")  # doctest: +SKIP
    >>> student.rank("usb-c hub", ["Anker 555 USB-C Hub", "HDMI cable 2 m"]).order  # doctest: +SKIP
    array([0, 1])
    """

    def __init__(self, model: TextModel, description: StudentDescription) -> None:
        self.model = model.eval()
        super().__init__(TorchScoring(self.model, len(description.task.classes)), description)

    def __repr__(self) -> str:
        """Name the task, its classes (their number beyond eight), the network and its number of weights."""
        named = ", ".join(self.classes) if len(self.classes) <= _NAMED else f"{len(self.classes):,} classes"
        return f"<Student: {self.task.name} ({named}), {self.model.kind} of {self.model.parameter_count():,} weights>"


class TorchScoring:
    """Computes a student by torch; see ``Scoring``."""

    def __init__(self, model: TextModel, classes: int) -> None:
        self._model, self._classes = model, classes
        self.kind = model.kind
        self.width = model.width if isinstance(model, Towers) else None

    @cached_property
    def digest(self) -> str:
        """See ``Scoring``."""
        model, weights = self._model, hashlib.sha256()
        hash_tensors(weights, model.state_dict())
        return fingerprint(kind=model.kind, settings=dict(model.settings), weights=weights.hexdigest())

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        """See ``Scoring``."""

        def compute(rows: slice) -> Tensor:
            encoded = self._model.encode(texts[rows], None if pairs is None else pairs[rows])
            return predict(self._model, encoded, _BATCH)

        return _by_chunks(len(texts), self._classes, compute)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """See ``Scoring``."""
        model = cast(Towers, self._model)
        return _by_chunks(
            len(texts),
            model.width,
            lambda rows: by_batches(
                model, prepare(model, model.encode(texts[rows], None), _BATCH), lambda batch: batch["text_ids"]
            ),
        )

    def compared(self, vectors: Vectors, pair_vectors: Vectors) -> Probabilities:
        """See ``Scoring``."""
        model = cast(Towers, self._model)
        device = next(model.parameters()).device

        def compute(rows: slice) -> Tensor:
            sides = (torch.tensor(one[rows], device=device) for one in (vectors, pair_vectors))
            return torch.softmax(model.score(*sides), dim=-1).cpu()

        with torch.no_grad():
            return _by_chunks(len(pair_vectors), self._classes, compute)


def load_student(path: Path | str, imports: Sequence[str] = ()) -> Student:
    """Load a student from the folder of a run (``runs/NAME``) or from its folder ``student``.

    Nothing in the folder is unpickled, and no code is imported that the folder names, except built-in students and
    ``imports``.

    :param path: folder
    :param imports: import paths of custom students that may be loaded: ``package.module:Name``
    :raises ModelError: there is no student, it is damaged, or it was written by another version; the message has the
        remedy
    """
    folder = student_folder(Path(path))
    with only_imports(imports, "load_student(imports=...)"):
        return Student(*load_saved_student(folder))


def student_folder(path: Path) -> Path:
    """Return the student's folder, ``path`` or its folder ``student``; errors are those of ``load_student``."""
    inside = path / STUDENT
    for folder in (path, inside):
        if (folder / DESCRIPTION).is_file():
            return folder
    if (path / MODEL).is_file() or (inside / MODEL).is_file():
        experiments = [folder / EXPERIMENT for folder in (path, path.parent) if (folder / EXPERIMENT).is_file()]
        experiment = experiments[0] if experiments else f"RUN/{EXPERIMENT}"
        raise ModelError(
            f"{path} has a student without {DESCRIPTION}, of an earlier version of fed-distill: write it again with "
            f"fed-distill run {experiment} --resume"
        )
    if (path / EXPERIMENT).is_file():
        if holder := writer(path):
            raise ModelError(
                f"the run in {path} has no student yet: process {holder} is running it; wait until it ends"
            )
        raise ModelError(
            f"the run in {path} has no student yet: finish it with fed-distill run {path / EXPERIMENT} --resume"
        )
    raise ModelError(f"{path} is neither the folder of a student ({DESCRIPTION}) nor that of a run ({EXPERIMENT})")


def check_new_folder(to: Path, folder: Path) -> None:
    """Raise ConfigError if ``to`` is not a new or empty folder outside of the student's own ``folder``."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not empty: choose another folder, or delete it")
    if not leads_out(to, folder):
        raise ConfigError(f"{to} is inside the student's own folder {folder}: choose a folder outside of it")


def _by_chunks(count: int, width: int, compute: Callable[[slice], Tensor]) -> npt.NDArray[np.float32]:
    """Return ``count`` rows that ``compute`` gives in chunks, float32 ``[count, width]``."""
    found = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, _CHUNK):
        rows = slice(start, min(start + _CHUNK, count))
        found[rows] = compute(rows).numpy()
    return found
