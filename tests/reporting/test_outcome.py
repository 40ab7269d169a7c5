"""A finished unit survives on disk, and a damaged one is named."""

import pytest

from fed_distill.errors import CheckpointError, TrainingError
from fed_distill.reporting.outcome import Outcome

OUTCOME = Outcome(
    name="fedmd",
    kind="federation",
    seed=2,
    metrics={"accuracy": 0.7, "auc": None},
    by_unit=[0.25, 1.0],
    merchant_accuracy={"a": 0.5, "b": 1.0},
    merchant_counts={"a": 4, "b": 2},
    personal_accuracy={"a": 0.75, "b": 1.0},
    own_accuracy={"b": 0.5},
    before_adaptation={"accuracy": 0.6, "auc": None},
    validation={"accuracy": 0.65, "auc": None},
    adaptation=["distillation: undone"],
    downlink_bytes=12.5,
    uplink_bytes=3.0,
    seconds=9.5,
    rounds=4,
)


def test_an_outcome_is_read_back_as_it_was(tmp_path):
    OUTCOME.save(tmp_path / "fedmd.json")
    assert Outcome.load(tmp_path / "fedmd.json") == OUTCOME


def test_an_outcome_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(TrainingError, match=r"fedmd\.json: metrics\.accuracy is nan"):
        Outcome("fedmd", "federation", 0, {"accuracy": float("nan")}).save(tmp_path / "fedmd.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": "two"}, "seed"),
        ({"kind": "study"}, "kind"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"metrics": None}, "metrics"),
    ],
)
def test_a_damaged_outcome_is_named_with_its_key(change, key):
    with pytest.raises(CheckpointError, match=f"x.json is not a stored outcome: {key}"):
        Outcome.from_json({**OUTCOME.to_json(), **change}, "x.json")


def test_accuracies_and_counts_are_of_the_same_merchants():
    with pytest.raises(ValueError, match="fedmd: merchant 'b'"):
        Outcome("fedmd", "federation", 0, {}, merchant_accuracy={"a": 1.0}, merchant_counts={"a": 1, "b": 2})
    with pytest.raises(ValueError, match="fedmd: the own student of merchant 'b' has no number of test examples"):
        Outcome("fedmd", "federation", 0, {}, merchant_counts={"a": 1}, own_accuracy={"a": 1.0, "b": 0.5})
