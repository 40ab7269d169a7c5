"""``fed-distill prune`` shows the student before and after pruning; a mistake is one line and exit code 2."""

import pytest

from fed_distill.models.pruning import NetworkShape
from fed_distill.reporting.pruned_card import Pruning, PruningRow
from fed_distill.serving import prune as pruning


@pytest.fixture
def asked(monkeypatch):
    """What the command asks for, with an answer of a student with two of six layers."""
    given = []
    rows = (
        PruningRow("before pruning", 11_000_000, 44_100_000, 100.25, 120.5, 0.94321),
        PruningRow("pruned", 4_000_000, 16_200_000, 31.75, 40.0, 0.80006),
        PruningRow("pruned and distilled", 4_000_000, 16_200_000, 31.75, 40.0, 0.93994),
    )
    found = Pruning(
        name="bert",
        model="bert-mini",
        digest="digest",
        before=NetworkShape(6, 1536),
        after=NetworkShape(2, 384),
        epochs=3.0,
        metric="ndcg@10",
        private=False,
        rows=rows,
    )
    monkeypatch.setattr(pruning, "prune_student", lambda *wanted: given.append(wanted) or found)
    return given


def test_a_row_has_weights_size_times_and_quality(entered, asked, tmp_path):
    code, out, err = entered("prune", "runs/a", "--to", tmp_path / "b", "--layers", 2, "--neurons", 384)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["before", "pruning", "11,000,000", "44.10", "100.25", "120.50", "0.9432"],
        ["pruned", "4,000,000", "16.20", "31.75", "40.00", "0.8001"],
        ["pruned", "and", "distilled", "4,000,000", "16.20", "31.75", "40.00", "0.9399"],
    ]
    assert "nDCG@10: on the validation examples" in " ".join(out.split())
    assert lines[-1] == f"student: {tmp_path / 'b'}"
    assert [str(asked[0][0]), *asked[0][1:5]] == ["runs/a", tmp_path / "b", 2, 384, 3.0]


def test_a_student_without_layers_is_an_error_that_says_what_to_prune(entered, tiny_run, tmp_path):
    code, _, err = entered("prune", tiny_run.result.folder, "--to", tmp_path / "b", "--layers", 1)
    assert code == 2
    assert "error: a student 'two-tower' has no layers to remove: prune bert-mini, distilbert or mobilebert" in err
    assert not (tmp_path / "b").exists()
