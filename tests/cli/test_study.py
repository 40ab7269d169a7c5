"""``fed-distill study``: from a file to a report, once; what failed is told by the exit code, a mistake in one line."""

import os
from pathlib import Path

import pandas as pd
import pytest
import tomli_w
from typer.testing import CliRunner

from fed_distill.cli import study as study_command
from fed_distill.cli.main import app
from fed_distill.sweeps.cells import expand
from fed_distill.sweeps.grid import Study
from fed_distill.sweeps.runner import Runner

ROOT = Path(__file__).parents[2]
GRID = """
name = "small"
seeds = 2

[base]
controls = []

[[axis]]
key = "federation.method"
values = ["fedavg", "fedmd"]
"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def command(entered):
    """A function that runs ``fed-distill study`` as the entry point does: exit code, output, errors."""

    def run(*arguments):
        return entered("study", *arguments)

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(GRID, encoding="utf-8")
    return path


@pytest.fixture
def sham(monkeypatch):
    """A function: let cells be run by this function of the module that stands in for simulations."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "sweeps" / "study"))
    return lambda name: monkeypatch.setattr(study_command, "SIMULATE", f"sham_cells:{name}")


def test_the_help_has_an_example():
    shown = CliRunner().invoke(app, ["study", "--help"])
    assert shown.exit_code == 0
    assert "Example: fed-distill study experiments/" in " ".join(shown.output.split())


def test_a_dry_run_lists_the_cells_and_runs_none(command, file, tmp_path):
    code, out, _ = command(file, "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    lines = out.splitlines()
    cells = expand(Study.read(file))
    assert [line.split(maxsplit=3)[-1].rstrip() for line in lines[1:5]] == [cell.title for cell in cells]
    assert all(line.split()[1:3] == ["to", "run"] for line in lines[1:5])
    assert lines[5].startswith("4 cells, 4 of them distinct; ")
    assert not (tmp_path / "out").exists()


def test_what_is_set_wins_over_tiny(file):
    study = Study.read(file, {"seeds": 2, "federation.rounds": 7})
    assert [cell.experiment.federation.rounds for cell in expand(study, tiny=True)] == [2, 2]
    cells = expand(study, True, ["seeds", "federation.rounds"])
    assert [(cell.seed, cell.experiment.federation.rounds) for cell in cells] == [(0, 7), (0, 7), (1, 7), (1, 7)]
    assert {cell.experiment.data.max_merchants for cell in cells} == {6}


def test_a_tiny_study_goes_on_with_what_was_set(command, file, tmp_path):
    out = tmp_path / "out"
    settings = ["--set", "seeds=2", "--set", "federation.rounds=7"]
    listed = command(file, "--out", out, "--tiny", "--dry-run", *settings)[1]
    assert "4 cells, 4 of them distinct" in listed
    command(file, "--out", out, "--tiny", "--report-only", *settings)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"fed-distill study {out / 'study.toml'} --out {out} --tiny {' '.join(settings)}" in page
    assert command(out / "study.toml", "--out", out, "--tiny", "--dry-run", *settings)[1] == listed


def test_merchants_that_are_elsewhere_are_not_studied(command, file, tmp_path):
    for options in ([], ["--dry-run"], ["--tiny"]):
        code, out, errors = command(file, "--out", tmp_path / "out", "--set", "data.clients=elsewhere", *options)
        assert (code, out) == (2, "")
        (line,) = errors.strip().splitlines()
        assert "data.clients = 'elsewhere' has no merchants to simulate" in line
        assert not (tmp_path / "out").exists()


def test_a_study_with_a_failed_cell_is_reported_and_exits_with_1_until_it_succeeds(command, file, sham, tmp_path):
    out = tmp_path / "out"
    sham("fail_fedmd")
    code, shown, errors = command(file, "--out", out, "--set", "seeds=1", "--parallel", 1)
    assert code == 1
    assert "FAILED: merchant 'shop-3' has no label" in errors
    assert f"report: {out / 'report.html'}" in shown
    results = pd.read_csv(out / "results.csv")
    assert results["status"].tolist() == ["finished", "failed"]
    assert results["reason"].tolist()[1] == "merchant 'shop-3' has no label"
    sham("run")
    code, shown, errors = command(out / "study.toml", "--out", out, "--markdown")
    assert code == 0
    assert "2 cells, 1 of them finished before" in errors
    assert shown.startswith("| method | cells | nDCG@10 |")
    assert "report: " in errors


def test_only_the_chosen_cells_are_run_and_reported(command, file, sham, tmp_path):
    sham("run")
    out = tmp_path / "out"
    code, shown, _ = command(file, "--out", out, "--only", "method=fedmd", "--markdown")
    assert code == 0
    assert "| fedmd | 2 of 2 |" in shown
    assert "| fedavg |" not in shown
    assert set(pd.read_csv(out / "results.csv")["method"]) == {"fedmd"}
    assert "--only method=fedmd" in (out / "report.html").read_text(encoding="utf-8")


def test_the_report_of_what_there_is_needs_no_run(command, file, tmp_path):
    code, shown, errors = command(file, "--out", tmp_path / "out", "--report-only")
    assert code == 1
    assert "0 of 2" in shown
    assert errors == ""
    assert "No cell of this study has finished yet" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_interrupt_says_how_to_go_on(command, file, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    code, out, errors = command(file, "--out", tmp_path / "out")
    assert code == 130
    assert out == ""
    assert errors.splitlines()[-1] == "stopped; continue with the same command"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seeds=none"], "seeds must be a whole number"),
        (["--set", "federation.ruonds=1"], "base: unknown key federation.ruonds"),
        (["--set", "federation.aggregator=fedavgg"], "cell method=fedavg, seed 0: unknown aggregator 'fedavgg'"),
        (["--set", "federation.options.eta=1"], "cell method=fedavg, seed 0: method 'fedavg' has no option 'eta'"),
        (["--only", "method=pate"], "--only: axis 'method' has no label 'pate'; it has: ['fedavg', 'fedmd']"),
        (["--set", "privacy.unit=example"], "base: privacy: unit 'example' requires either epsilon"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_is_run(command, file, tmp_path, arguments, message):
    code, out, errors = command(file, "--out", tmp_path / "out", "--set", "federation.method=fedavg", *arguments)
    assert (code, out) == (2, "")
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("privacy_*.toml")), ids=lambda path: path.stem)
def test_every_study_file_is_a_study_and_its_tiny_version_too(path):
    study = Study.read(path)
    draws = study.seeds * max(len(study.data_seeds), 1)
    assert draws == (3 if study.audit is None else 1)  # an attack costs several runs
    assert study.budget_axis == "epsilon"
    assert len(expand(study)) >= study.seeds * len(expand(study, tiny=True)) > 3


@pytest.mark.e2e
def test_a_study_of_real_runs_ends_in_a_report_and_runs_nothing_twice(command, tiny_experiment, tmp_path):
    base = tiny_experiment(tmp_path / "runs", {"controls": ["server", "local", "pooled"], "federation.rounds": 1})
    tables = {
        "name": "real",
        "seeds": 1,
        "base": base.model_dump(mode="json", exclude_none=True),
        "axis": [{"key": "federation.method", "values": ["fedavg-kd"]}],
    }
    file = tmp_path / "real.toml"
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
    code, out, errors = command(file, "--set", "runtime.threads=1")
    assert code == 0, errors
    folder = tmp_path / "runs" / "studies" / "real"
    assert f"report: {folder / 'report.html'}" in out
    results = pd.read_parquet(folder / "results.parquet")
    assert results["role"].tolist() == ["controls", "cell"]
    assert results["status"].tolist() == ["finished", "finished"]
    cell = results.iloc[1]
    assert cell["above_server"] == pytest.approx(cell["score"] - cell["control.server"])
    assert cell["total_bytes"] > 0
    assert (folder / "figures" / "bytes.png").stat().st_size > 0
    assert all((folder / "cells" / name / "report.html").exists() for name in results["fingerprint"])
    before = {path: os.stat(path).st_mtime_ns for path in folder.glob("cells/*/summary.json")}
    code, _, errors = command(file, "--set", "runtime.threads=1")
    assert code == 0
    assert "2 cells, 2 of them finished before" in errors
    assert {path: os.stat(path).st_mtime_ns for path in folder.glob("cells/*/summary.json")} == before


TUNED = (
    GRID.replace("seeds = 2", "seeds = 1")
    + """
[tuning]
axis = "method"
trials = 2
search = [{ key = "training.merchants.learning_rate", factors = [2.0] }]
"""
)


def test_a_tuned_study_lists_its_trials_runs_them_first_and_ends_with_their_table(command, sham, tmp_path):
    sham("run")
    file, out = tmp_path / "tuned.toml", tmp_path / "out"
    file.write_text(TUNED, encoding="utf-8")
    code, listed, _ = command(file, "--dry-run", "--out", out)
    assert code == 0 and not out.exists()
    assert "4 trials, 0 of them finished; 2 cells, 2 of them distinct" in " ".join(listed.split())
    assert listed.count("after the trials") == 2
    code, shown, errors = command(file, "--markdown", "--out", out)
    assert code == 0
    assert errors.index("4 trials; at most") < errors.index("2 cells; at most")
    assert "| fedavg | 2 | as in the file: learning_rate 0.003 | 0.7000 | 0.7000 |" in shown
    assert "| fedmd | 2 | learning_rate 0.006 (file: 0.003) | 0.7000 | 0.8000 |" in shown
    code, again, errors = command(file, "--markdown", "--report-only", "--out", out)
    assert (code, again) == (0, shown)
    _, listed, _ = command(file, "--dry-run", "--out", out)
    assert "4 trials, 4 of them finished" in " ".join(listed.split()) and "after the trials" not in listed


def test_a_report_of_a_tuned_study_without_its_trials_is_refused(command, tmp_path):
    file = tmp_path / "tuned.toml"
    file.write_text(TUNED, encoding="utf-8")
    code, _, errors = command(file, "--report-only", "--out", tmp_path / "out")
    assert code == 2
    assert "fedavg has 0 of 2 trials, fedmd has 0 of 2 trials" in " ".join(errors.split())
