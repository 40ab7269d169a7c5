"""Names lead to things, near misses to hints, and options are checked before anything is built."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from fed_distill.errors import ConfigError, NotAllowed
from fed_distill.registry import Registry, allow_imports


@dataclass(frozen=True)
class Oven:
    degrees: int = 180
    share: Annotated[float, Field(ge=0.0)] = 0.5
    given: str = ""

    def __post_init__(self):
        if self.degrees > 300:
            raise ValueError("no oven is hotter than 300")


class NotADataclass:
    pass


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "kitchen", sys.modules[__name__])


@pytest.fixture
def ovens():
    return Registry("oven", {"oven": "kitchen:Oven", "stove": "kitchen:Missing", "plain": "kitchen:NotADataclass"})


def test_short_names_and_import_paths_lead_to_the_same_thing(ovens):
    assert ovens.resolve("oven") is Oven
    assert ovens.resolve("kitchen:Oven") is Oven


def test_a_near_miss_is_answered_with_the_nearest_names(ovens):
    with pytest.raises(
        ConfigError, match=r"unknown oven 'ovne'; did you mean oven, stove\? A custom oven is named by import path"
    ):
        ovens.resolve("ovne")


def test_a_name_like_none_is_answered_with_all_names(ovens):
    with pytest.raises(ConfigError, match="did you mean oven, plain, stove"):
        ovens.resolve("zzz")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package:Thing", "cannot import oven 'no_such_package:Thing': No module named 'no_such_package'"),
        (":Thing", "cannot import oven ':Thing': ValueError: Empty module name"),
        (".kitchen:Thing", "cannot import oven '.kitchen:Thing': TypeError: the 'package' argument is required"),
        ("kitchen:Fridge", "kitchen has no 'Fridge' \\(required as oven\\)"),
    ],
)
def test_a_wrong_import_path_says_what_is_missing(ovens, path, message):
    with pytest.raises(ConfigError, match=message):
        ovens.resolve(path)


@pytest.mark.parametrize(
    ("code", "said"), [("def (", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: division by zero")]
)
def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch, ovens, code, said):
    (tmp_path / "broken_oven_of_the_test.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"cannot import oven 'broken_oven_of_the_test:Own': {said}"):
        ovens.resolve("broken_oven_of_the_test:Own")


def test_a_module_in_the_working_folder_is_found_and_the_search_path_left_as_it_was(tmp_path, monkeypatch, ovens):
    (tmp_path / "own_oven_of_the_test.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Own:\n    heat: int = 3\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    path = [entry for entry in sys.path if entry]
    monkeypatch.setattr(sys, "path", list(path))
    assert ovens.build("own_oven_of_the_test:Own", {"heat": 5}).heat == 5
    assert sys.path == path


def test_options_are_converted_and_defaults_kept(ovens):
    assert ovens.build("oven", {"degrees": 200}, given="by the program") == Oven(200, 0.5, "by the program")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degree": 1}, "oven 'oven' has no option 'degree'; it has: degrees, share$"),
        ({"given": "x"}, "oven 'oven' has no option 'given'"),
        ({"degrees": "hot"}, "oven 'oven', option degrees must be a whole number"),
        ({"share": -1}, "oven 'oven', option share must be at least 0"),
        ({"degrees": 301}, "oven 'oven': no oven is hotter than 300"),
    ],
)
def test_a_wrong_option_is_named(ovens, options, message):
    with pytest.raises(ConfigError, match=message):
        ovens.build("oven", options, given="")


def test_what_is_not_a_dataclass_cannot_be_built(ovens):
    with pytest.raises(ConfigError, match="oven 'plain' must be a dataclass, so that its options can be checked"):
        ovens.build("plain", {})


def test_every_built_in_name_resolves():
    from fed_distill.aggregation import AGGREGATORS
    from fed_distill.data import DATASETS
    from fed_distill.methods import METHODS
    from fed_distill.models import STUDENTS, TEACHERS
    from fed_distill.reporting.callbacks import CALLBACKS

    for registry in (DATASETS, AGGREGATORS, METHODS, STUDENTS, TEACHERS, CALLBACKS):
        for name in registry:
            assert callable(registry.resolve(name))


def test_listing_the_methods_does_not_import_torch():
    code = (
        "import sys; from fed_distill.methods import METHODS; assert 'fedmd' in METHODS; print('torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def allowed():
    yield allow_imports
    allow_imports(None)


def test_of_what_is_not_built_in_only_what_is_allowed_is_imported(ovens, allowed):
    assert ovens.resolve("kitchen:NotADataclass") is NotADataclass
    allowed(["json:loads"])
    assert ovens.resolve("oven") is ovens.resolve("kitchen:Oven") is Oven
    assert ovens.resolve("json:loads") is not None
    for name in ("kitchen:Table", "json:dumps", "os:system", "fed_distill.cli.main:main"):
        with pytest.raises(NotAllowed, match=r"rule imports: oven .* is neither built in nor listed there"):
            ovens.resolve(name)
    with pytest.raises(ConfigError, match="unknown oven"):
        ovens.resolve("ovn")


def test_a_built_in_part_may_have_no_short_name(allowed):
    hidden = Registry("oven", {}, built_in=["kitchen:Oven"])
    allowed([])
    assert hidden.resolve("kitchen:Oven") is Oven
    with pytest.raises(NotAllowed):
        hidden.resolve("kitchen:NotADataclass")


def test_a_former_name_is_rejected_with_the_current_one():
    ovens = Registry("oven", {"oven": "kitchen:Oven"}, renamed={"stove": "oven"})
    with pytest.raises(ConfigError, match="oven 'stove' was renamed: use 'oven'"):
        ovens.resolve("stove")
    assert "stove" not in ovens
