"""State of a federation between rounds, and its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fed_distill.aggregation.base import Aggregator
from fed_distill.errors import CheckpointError
from fed_distill.methods.base import GlobalState, replace
from fed_distill.models.weights import Weights
from fed_distill.storage.parts import RunPart


@dataclass(frozen=True)
class BestRound:
    """The best validation so far: its score and global student. since: number of later validations."""

    score: float
    weights: Weights
    since: int = 0


@dataclass
class FederationProgress:
    """The method's state and the rest of the checkpoint.

    best: for early stopping. record: of the last round. lines: hash of all rounds' records (``chained``). kept: the
    last round with stored state of each merchant, by store (``Stores.rounds``). identity: as in ``Federation``.
    """

    state: GlobalState
    best: BestRound | None = None
    started: set[str] = field(default_factory=set)
    downlink_bytes: float = 0.0
    uplink_bytes: float = 0.0
    seconds: float = 0.0
    personal_counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    lines: str = ""
    kept: dict[str, dict[str, int]] = field(default_factory=dict)
    identity: str = ""


def better(best: BestRound | None, score: float, weights: Weights) -> BestRound:
    """Return the best validation after one with ``score`` of the global student with ``weights``."""
    if best is not None and score <= best.score:
        return replace(best, since=best.since + 1)
    return BestRound(score, {name: value.clone() for name, value in weights.items()})


def restored(part: RunPart, start: GlobalState, aggregator: Aggregator, identity: str = "") -> FederationProgress:
    """Load the checkpoint of ``part`` and restore the aggregator's state; return ``start`` without a checkpoint.

    :raises CheckpointError: the checkpoint is damaged, or has another ``identity``
    """
    found = part.read(part.rounds)
    if found is None:
        return FederationProgress(start, identity=identity)
    tensors, values = found
    if values["identity"] != identity:
        raise CheckpointError(
            f"{part.rounds} belongs to another federation: settings or data differ, or the file with its identity was "
            "lost or restored from an older copy. Start a new run with another --name"
        )
    aggregator.restore(_under(tensors, "aggregator/"))
    state = replace(
        start,
        round=values["round"],
        weights=_under(tensors, "weights/"),
        consensus=tensors.get("consensus"),
        kept=_under(tensors, "kept/"),
        teacher_weights=_under(tensors, "teacher/"),
        teacher_labels=tensors.get("teacher_labels", start.teacher_labels),
    )
    best = values["best"]
    return FederationProgress(
        state,
        None if best is None else BestRound(best["score"], _under(tensors, "best/"), best["since"]),
        set(values["started"]),
        values["downlink_bytes"],
        values["uplink_bytes"],
        values["seconds"],
        {merchant: (right, count) for merchant, (right, count) in values["personal_counts"].items()},
        values["record"],
        values["lines"],
        values["kept"],
        identity,
    )


def keep(part: RunPart, aggregator: Aggregator, progress: FederationProgress) -> None:
    """Write the checkpoint for ``restored``."""
    state = progress.state
    tensors = {f"weights/{name}": value for name, value in state.weights.items()}
    tensors |= {f"aggregator/{name}": value for name, value in aggregator.state().items()}
    tensors |= {f"kept/{name}": value for name, value in state.kept.items()}
    if state.teacher_weights:
        tensors |= {f"teacher/{name}": value for name, value in state.teacher_weights.items()}
        tensors["teacher_labels"] = state.teacher_labels
    best = progress.best
    tensors |= {} if best is None else {f"best/{name}": value for name, value in best.weights.items()}
    if state.consensus is not None:
        tensors["consensus"] = state.consensus
    values = {
        "round": state.round,
        "started": sorted(progress.started),
        "downlink_bytes": progress.downlink_bytes,
        "uplink_bytes": progress.uplink_bytes,
        "seconds": progress.seconds,
        "personal_counts": progress.personal_counts,
        "record": progress.record,
        "lines": progress.lines,
        "kept": progress.kept,
        "identity": progress.identity,
        "best": None if best is None else {"score": best.score, "since": best.since},
    }
    part.write(part.rounds, tensors, values)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
