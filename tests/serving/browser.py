"""The student in JavaScript, run by node, and random texts for it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings

NODE = shutil.which("node")
SCRIPT = Path(__file__).parent / "run_student.mjs"

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed: JavaScript cannot be run")


def run_node(folder, *calls):
    """Return the result of each call, ``[method, *arguments]``, of the student in ``folder``."""
    request = json.dumps({"folder": str(folder), "calls": calls})
    done = subprocess.run([NODE, SCRIPT], input=request, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def drawn(strategy, count):
    """Return ``count`` values, the same ones every time."""
    found = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate], deadline=None)
    @given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found
