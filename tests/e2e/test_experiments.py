"""Every experiment file runs from the command to its report, in its tiny version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))
NEEDS_DOWNLOAD = {"pricerunner.toml"}

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_to_its_report(path, tmp_path):
    if path.name in NEEDS_DOWNLOAD and "FED_DISTILL_DATA" not in os.environ:
        pytest.skip("FED_DISTILL_DATA does not point to the data set")
    command = [sys.executable, "-m", "fed_distill.cli.main", "run", str(path), "--tiny"]
    settings = {"runtime.folder": tmp_path / "runs", "runtime.cache": tmp_path / "cache", "runtime.threads": 1}
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / f"{path.stem}-tiny"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["controls"]) == {"server", "local", "pooled", "fedavg"}
    assert summary["bytes"]["uplink_per_merchant_round"] > 0
    assert 0 <= summary["student"][summary["headline"]] <= 1
    for name in (
        "report.html",
        "experiment.toml",
        "metrics.jsonl",
        "classification_report.txt",
        "student/model.safetensors",
    ):
        assert (folder / name).stat().st_size > 0
    assert str(folder / "report.html") in done.stdout
