"""``unit_scores.json`` of a run: the headline metric by unit of the common test set for each control and federation, by
seed. A unit is a query, a block of customers or a group of examples, see ``Outcome.by_unit``.

Studies pair runs by it. It has no texts, but where a unit has one example its value may tell the example's class and
the predicted one. A simulation that reports no scores (``privacy.report_scores``) does not write it.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fed_distill.errors import CheckpointError
from fed_distill.reporting.outcome import Outcome
from fed_distill.storage.files import strict_json

UNIT_SCORES = "unit_scores.json"
DIGITS = 6


class UnitScores(BaseModel):
    """Scores of one row and seed. kind: ``control``, ``federation`` or ``level``."""

    kind: str
    name: str
    seed: int
    scores: list[float]


class _File(BaseModel):
    rows: list[UnitScores]


def written(outcomes: Sequence[Outcome]) -> str:
    """Return the content of the file; rows without scores by unit are left out."""
    rows = [
        UnitScores(kind=one.kind, name=one.name, seed=one.seed, scores=[round(x, DIGITS) for x in one.by_unit])
        for one in outcomes
        if one.by_unit
    ]
    return strict_json(_File(rows=rows).model_dump(), UNIT_SCORES) + "\n"


def read_unit_scores(folder: Path) -> list[UnitScores]:
    """Return the rows of a run; none for a run that did not write the file.

    :raises CheckpointError: the file is damaged
    """
    path = folder / UNIT_SCORES
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(path.read_text(encoding="utf-8")).rows
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: restore a copy of it, or delete the run to repeat it") from error
