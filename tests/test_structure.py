"""What the layout promises and no linter sees: short files, one meaning for each public name, thin Flower apps."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from flwr.common.constant import FAB_EXCLUDE_PATTERNS

ROOT = Path(__file__).parents[1]
PACKAGES = ("fed_distill", "server", "clients")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MOST_LINES = 400
LONG: set[str] = set()
"""Files that are longer today. A file leaves this list when it is cut, and none may join it."""
TWICE: set[str] = set()
"""Names of two public classes today. A name leaves this list when one of them is renamed, and none may join it."""


def lines(path):
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_a_reader_keeps_in_mind():
    assert {str(path) for path in FILES if lines(path) > MOST_LINES} == LONG


def test_no_two_public_classes_have_one_name():
    counts = Counter(
        node.name
        for path in FILES
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in counts.items() if count > 1} == TWICE


def test_every_file_is_in_the_bundle_that_flower_sends():
    """Flower leaves files out of an app's bundle whose names look like those of tests."""
    patterns = [pattern.removeprefix("**/") for pattern in FAB_EXCLUDE_PATTERNS if pattern.startswith("**/")]
    assert "*_test.py" in patterns
    assert [path for path in FILES if any(path.match(pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("path", ["server/app.py", "clients/app.py"])
def test_a_flower_app_of_a_checkout_only_names_the_librarys(path):
    assert lines(path) < 60
