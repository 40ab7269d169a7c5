"""``fed-distill compare`` of two real runs."""

import pytest

from fed_distill import run


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")


def test_two_runs_are_printed_side_by_side(entered, tiny_experiment, tmp_path):
    quick = {"controls": ["server"], "federation.rounds": 1}
    first = run(tiny_experiment(tmp_path, {**quick, "name": "first"})).folder
    changed = {"name": "second", "federation.rounds": 2}
    second = run(tiny_experiment(tmp_path, {**quick, **changed})).folder
    code, out, errors = entered("compare", first, second)
    assert (code, errors) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["federation.rounds", "1", "2"] in lines
    server = next(line for line in lines if line[:3] == ["server", "alone", "nDCG@10"])
    assert server[3] == server[4]
    assert server[5:] == ["+0.0000", "±", "0.0000"]  # the same student, whatever the rounds
    assert any(line[:1] == ["fedavg-kd"] and "±" in line for line in lines)


def test_a_folder_that_is_no_run_is_named(entered, tmp_path):
    code, _, errors = entered("compare", tmp_path, tmp_path)
    assert code == 2
    assert f"{tmp_path} has no summary.json and no experiment.toml" in errors
