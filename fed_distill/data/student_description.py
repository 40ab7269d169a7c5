"""``student.json``: the task of a trained student, and the cleaning and encoding of its texts.

Reading it requires no network, so that a student that was exported is served without torch.
``docs/how-to/student.md`` has the format.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import PositiveInt, TypeAdapter

from fed_distill.data.examples import Task
from fed_distill.errors import CheckpointError, ModelError
from fed_distill.storage.files import read_json

FORMAT = 1
"""Version of ``student.json``. Increase it with any change by which an earlier program would misread a student."""
DESCRIPTION = "student.json"
_LARGEST_GAIN = 1e6
"""Largest magnitude of a class's gain: expected gains of float32 probabilities stay finite and comparable."""


@dataclass(frozen=True)
class StudentDescription:
    """What a student was trained for. max_characters: longest text (of a history: longest title) in its data."""

    task: Task
    max_characters: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``student.json``; raise ModelError if it is missing, damaged, or of a newer format."""
        path = folder / DESCRIPTION
        try:
            content = read_json(path)
            number = content["format"]
            if number != FORMAT:
                raise ModelError(
                    f"{path} has format {number!r}, and this version of fed-distill reads format {FORMAT}: install "
                    f"fed-distill {content.get('versions', {}).get('fed-distill', 'of a later version')}"
                )
            task = TypeAdapter(Task).validate_python(content["task"])
            if len(set(task.classes)) < len(task.classes) or task.positive not in task.classes:
                raise ValueError(f"classes {task.classes} must be distinct, with {task.positive!r} among them")
            if task.gains is not None and len(task.gains) != len(task.classes):
                raise ValueError(f"{len(task.gains)} gains of {len(task.classes)} classes")
            if not all(abs(gain) <= _LARGEST_GAIN for gain in task.gains or ()):  # not of NaN either
                raise ValueError(f"gains {task.gains} must be finite, and of magnitude {_LARGEST_GAIN:.0e} at most")
            return cls(task, TypeAdapter(PositiveInt).validate_python(content["text"]["max_characters"]))
        except (CheckpointError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} is not a student's description: {error}") from error


def read_encoding(folder: Path) -> dict[str, Any]:
    """Return how the texts of the student in ``folder`` become integers: ``algorithm`` and its parameters.

    :raises ModelError: ``student.json`` is missing or damaged
    """
    path = folder / DESCRIPTION
    try:
        return TypeAdapter(dict[str, Any]).validate_python(read_json(path)["encoding"])
    except (CheckpointError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} is not a student's description: encoding: {error}") from error
