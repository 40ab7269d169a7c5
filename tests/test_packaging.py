"""What is in the wheel: the marker of types, and the experiments that ``fed-distill experiments`` copies."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import fed_distill

ROOT = Path(__file__).parents[1]
EXPERIMENTS = {path.name: path.read_bytes() for path in (ROOT / "experiments").glob("*.toml")}


def built(source, folder):
    """Build the wheel of a source tree, and give its path."""
    pytest.importorskip("hatchling", reason="builds the wheel; the extra `test` has it")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(built(ROOT, tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


def test_the_wheel_has_the_types_and_the_experiments_and_no_other_package(wheel):
    names = set(wheel.namelist())
    prefix = "fed_distill/shipped/"
    assert {name.removeprefix(prefix): wheel.read(name) for name in names if name.startswith(prefix)} == EXPERIMENTS
    assert "fed_distill/py.typed" in names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"fed_distill"}


@pytest.mark.parametrize("image", ["server", "clients"])
def test_an_image_has_what_the_wheel_has(image, wheel, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    folder.mkdir()
    lines = (ROOT / image / "Containerfile").read_text(encoding="utf-8").splitlines()
    for _, *names, to in [line.split() for line in lines if line.startswith("COPY ")]:
        for name in names:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / to if len(names) == 1 else source)
    with zipfile.ZipFile(built(source, folder)) as archive:
        assert sorted(archive.namelist()) == sorted(wheel.namelist())


def test_an_installed_wheel_finds_its_experiments_without_a_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from fed_distill.experiment.shipped import experiments, folder
print(folder(), len(experiments()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env={}
    )
    assert done.stdout.split() == [str(tmp_path / "fed_distill" / "shipped"), str(len(EXPERIMENTS))]


def test_the_citation_and_the_changelog_are_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"] == fed_distill.__version__
    assert (citation["license"], citation["keywords"]) == (project["license"], project["keywords"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`tests/" in line]
    named = {name for row in rows for name in re.findall(r"`([\w/]+(?:\.py|/))", row)}
    assert len(rows) == 10
    known = [ROOT, ROOT / "fed_distill"]
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in known)] == []
