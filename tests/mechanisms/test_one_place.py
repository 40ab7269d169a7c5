"""No file but the mechanisms' own compares a privacy unit with a name: a new unit is one file."""

import ast
from pathlib import Path

import pytest

import fed_distill
from fed_distill.mechanisms import MECHANISMS

ROOT = Path(fed_distill.__file__).parent
IN_CONFIG = "config/privacy.py: unit != UNPROTECTED"
"""What is no protection is known where the table is, in one function."""


def comparisons(source):
    """The comparisons of something called a unit with names of units, in one list or constant or several."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            about = [side for side in sides if "unit" in ast.unparse(side).lower() and not names(side)]
            if about and any(names(side) for side in sides if side not in about):
                found.append(ast.unparse(node))
        if isinstance(node, ast.match_case) and any(names(part) for part in ast.walk(node.pattern)):
            found.append(ast.unparse(node.pattern))
    return found


def names(node):
    """Names of units that are written out in an expression, or the constant that is one."""
    return {
        part.value if isinstance(part, ast.Constant) else part.id
        for part in ast.walk(node)
        if (isinstance(part, ast.Constant) and part.value in MECHANISMS)
        or (isinstance(part, ast.Name) and part.id == "UNPROTECTED")
    }


def test_nothing_else_compares_the_unit():
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {comparison}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.parent != ROOT / "mechanisms"
        for comparison in comparisons(path.read_text(encoding="utf-8"))
    ]
    assert found == [IN_CONFIG]


def test_pages_do_not_either():
    """Reports are templates, in which nothing is parsed as Python."""
    for path in sorted(ROOT.rglob("*template*.py")):
        text = path.read_text(encoding="utf-8")
        for name in MECHANISMS:
            assert f'unit == "{name}"' not in text and f'unit != "{name}"' not in text, path


@pytest.mark.parametrize(
    "source",
    [
        "experiment.privacy.unit == 'example'",
        "'none' != config.unit",
        "self.unit in ('example', 'group')",
        "block['unit'] not in ['vote']",
        "unit_of(arm) in (*OTHERS, 'merchant')",
        "unit == UNPROTECTED",
        "match unit:\n    case 'vote':\n        pass",
    ],
)
def test_every_way_to_compare_is_seen(source):
    assert comparisons(source)


@pytest.mark.parametrize(
    "source", ["config.group == 'group'", "entry.charge.unit == unit", "attack == 'none'", "unit in MOVED_BY"]
)
def test_what_compares_no_unit_with_a_name_is_not(source):
    assert not comparisons(source)
