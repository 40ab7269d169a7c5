"""The site is built strictly, without a network, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:@import\s+|url\()["']?((?:https?:)?//[^"')\s]+)""",
    re.I,
)


def loaded(text: str) -> list[str]:
    """Addresses of other machines from which a page or style sheet loads something; links are none."""
    return ["".join(found) for found in LOADED.findall(text)]


def test_what_is_loaded_from_elsewhere_is_found():
    page = """<script src="https://unpkg.com/a.js"></script><a href="https://example.org">x</a><link rel="stylesheet"
        href="//fonts.example.org/b.css"><style>@import "https://c.example.org/c.css";</style><img src="own.png">"""
    assert loaded(page) == ["https://unpkg.com/a.js", "//fonts.example.org/b.css", "https://c.example.org/c.css"]


@pytest.mark.e2e
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    # a proxy that does not answer: what asks the network fails
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 30
    assert {path.name: found for path in files if (found := loaded(path.read_text(encoding="utf-8")))} == {}
    keys = (tmp_path / "reference" / "experiment.html").read_text(encoding="utf-8")
    assert 'id="federation.rounds"' in keys
