"""The result of one student with one seed: the unit of a summary, and of resuming a run.

A finished control or federation is stored as a small JSON file, so that a resumed run does not train it again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fed_distill.errors import CheckpointError
from fed_distill.evaluation.metrics import Metrics
from fed_distill.storage.files import space_for, write_atomic
from fed_distill.storage.sealed import read_sealed_json, sealed_json


@dataclass(frozen=True)
class Outcome:
    """The result of one trained student.

    name: ``server``, ``local``, ``pooled``, ``fedavg``, a federation's title, or a level of the chain from teacher to
    student (with metrics only, ``parameters`` among them). metrics: on the common test set (for ``local`` the mean over
    the merchants' students). by_unit: values by unit of the common test set, whose mean is the headline metric: nDCG@10
    of each query that has a gain, ``qini_by_block``, or else ``macro_f1_by_group``; for ``local`` means likewise.
    merchant_accuracy: on each merchant's test set of merchant_counts rows, by the global student (for ``local`` by the
    merchant's own). personal_accuracy: the same for students adapted to each merchant, if configured. own_accuracy: the
    same for the students that merchants keep, each after its last round, with a method whose merchants have students of
    their own; merchants that took part in no round are left out. unheard: merchants without a result, because their
    site did not answer or does not send it. before_adaptation, before_by_unit: metrics and by_unit before domain
    adaptation; None and empty without. validation: metrics on the common validation set, for the controls' lines in
    learning curves. cold: metrics on the test examples of cold-start merchants, if there are any. with_bm25: ranking
    metrics of the sum of the student's scores and BM25's (``coordinator.evaluation.Scored``), with_bm25_by_unit: its
    by_unit. adaptation: one line per stage of the adaptation, undone ones included. downlink_bytes, uplink_bytes: mean
    serialized size per merchant and round. privacy: guarantee and cost (``mechanisms.account``); None without privacy.
    seconds: duration. rounds: number of rounds. lines: hash of its lines in ``metrics.jsonl``
    (``storage.sealed.chained``).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    kind: Literal["control", "federation", "level"]
    seed: int
    metrics: Metrics
    by_unit: list[float] = field(default_factory=list)
    merchant_accuracy: Mapping[str, float] = field(default_factory=dict)
    merchant_counts: Mapping[str, int] = field(default_factory=dict)
    personal_accuracy: Mapping[str, float] = field(default_factory=dict)
    own_accuracy: Mapping[str, float] = field(default_factory=dict)
    unheard: list[str] = field(default_factory=list)
    before_adaptation: Metrics | None = None
    before_by_unit: list[float] = field(default_factory=list)
    validation: Metrics | None = None
    cold: Metrics | None = None
    with_bm25: Metrics | None = None
    with_bm25_by_unit: list[float] = field(default_factory=list)
    adaptation: list[str] = field(default_factory=list)
    downlink_bytes: float = 0.0
    uplink_bytes: float = 0.0
    privacy: Mapping[str, Any] | None = None
    seconds: float = 0.0
    rounds: int = 0
    lines: str = ""

    def __post_init__(self) -> None:
        for accuracies in (self.merchant_accuracy, self.personal_accuracy):
            if accuracies and set(accuracies) != set(self.merchant_counts):
                odd = sorted(set(accuracies) ^ set(self.merchant_counts))[0]
                raise ValueError(f"{self.name}: merchant {odd!r} has only one of accuracy and number of test examples")
        if unknown := sorted(set(self.own_accuracy) - set(self.merchant_counts)):
            raise ValueError(f"{self.name}: the own student of merchant {unknown[0]!r} has no number of test examples")

    def unadapted(self) -> Self:
        """Return the result with the scores that the method alone had, before domain adaptation."""
        if self.before_adaptation is None:
            return self
        return dataclasses.replace(self, metrics=self.before_adaptation, by_unit=self.before_by_unit)

    def summed(self) -> Self | None:
        """Return the result with the scores of the sum with BM25; None if there is none."""
        if self.with_bm25 is None:
            return None
        metrics = {**self.metrics, **self.with_bm25}
        return dataclasses.replace(self, metrics=metrics, by_unit=self.with_bm25_by_unit)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any, source: str = "outcome") -> Self:
        """Parse the result of ``to_json``; raise CheckpointError, naming ``source`` and the first invalid key."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "content"
            raise CheckpointError(f"{source} is not a stored outcome: {where}: {problem['msg']}") from error

    def save(self, path: Path) -> None:
        """Write a JSON file with its checksum, atomically."""
        with space_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, sealed_json(self.to_json(), path))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file written by ``save``; raise CheckpointError if it is missing or damaged."""
        return cls.from_json(read_sealed_json(path), str(path))
