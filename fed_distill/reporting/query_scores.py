"""``query_scores.json`` of a run: nDCG@10 of each test query for each control and federation, by seed.

Studies pair runs by it. It has no merchant's data: the queries are those of the common test set.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fed_distill.errors import CheckpointError
from fed_distill.reporting.outcome import Outcome
from fed_distill.storage.files import strict_json

QUERY_SCORES = "query_scores.json"
DIGITS = 6


class QueryScores(BaseModel):
    """Scores of one row and seed. kind: ``control``, ``federation`` or ``level``."""

    kind: str
    name: str
    seed: int
    scores: list[float]


class _File(BaseModel):
    rows: list[QueryScores]


def written(outcomes: Sequence[Outcome]) -> str:
    """Return the content of the file; rows without a ranking view are left out."""
    rows = [
        QueryScores(kind=one.kind, name=one.name, seed=one.seed, scores=[round(x, DIGITS) for x in one.per_query])
        for one in outcomes
        if one.per_query
    ]
    return strict_json(_File(rows=rows).model_dump(), QUERY_SCORES) + "\n"


def read_query_scores(folder: Path) -> list[QueryScores]:
    """Return the rows of a run; none for a run of a version that did not write the file.

    :raises CheckpointError: the file is damaged
    """
    path = folder / QUERY_SCORES
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(path.read_text(encoding="utf-8")).rows
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: restore a copy of it, or delete the run to repeat it") from error
