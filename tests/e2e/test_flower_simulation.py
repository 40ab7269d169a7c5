"""`flwr run .` on Flower's own simulation engine (Ray) gives what the in-process runtime gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file

from fed_distill import Experiment, run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.e2e


def test_flowers_simulation_gives_the_same_student_as_the_in_process_runtime(superlink, tmp_path, distance):
    base = Experiment.read(ROOT / "experiments" / "marketplace.toml").tiny()
    common = {"runtime.cache": str(tmp_path / "cache"), "runtime.callbacks": [], "runtime.threads": 1}
    here = run(base.with_changes({"runtime.folder": str(tmp_path / "here"), **common}))
    config = tmp_path / "run_config.toml"
    there = base.with_changes({"runtime.folder": str(tmp_path / "there"), **common})
    config.write_text(tomli_w.dumps(there.to_run_config()))
    command = [BIN / "flwr", "run", str(ROOT), "test", "--run-config", str(config), "--stream"]
    done = subprocess.run(command, env=superlink, capture_output=True, text=True, cwd=tmp_path)
    student = tmp_path / "there" / base.name / "student" / "model.safetensors"
    assert student.exists(), done.stdout + done.stderr
    expected = load_file(here.student / "model.safetensors")
    reached = load_file(student)
    # two nodes, one site: other merchants are summed together, and AdamW amplifies the rounding
    assert distance(reached, expected) < 1e-4
