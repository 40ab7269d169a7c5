"""What Flower carries from server to sites holds no code, and is the same wherever the same package is installed."""

import io
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fed_distill.config import Experiment
from fed_distill.deploy.bundle import PACKAGE, bundle, bundle_hash

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hash_of(tmp_path):
    """A function: the bundle's hash where a copy of the package, changed by a function of its folder, is installed."""

    def find(change=lambda folder: None):
        folder = tmp_path / "copy"
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
        change(folder)
        told = "from fed_distill.deploy.bundle import bundle_hash; print(bundle_hash())"
        done = subprocess.run(
            [sys.executable, "-P", "-c", told], env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return find


def test_it_holds_a_description_and_nothing_to_run():
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        assert sorted(archive.namelist()) == [".info/CONTENT", "pyproject.toml"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        described = tomllib.loads(archive.read("pyproject.toml").decode())["tool"]["flwr"]["app"]
    assert described["components"] == {
        "serverapp": "fed_distill.deploy.server_app:app",
        "clientapp": "fed_distill.merchant.app:app",
    }
    assert described["config"].keys() == Experiment(name="other").to_run_config().keys()


def test_it_is_the_same_in_another_place(hash_of):
    assert hash_of() == bundle_hash()


@pytest.mark.parametrize("module", ["merchant/limits.py", "deploy/server_app.py", "privacy/dp_sgd.py"])
def test_it_is_another_with_a_byte_of_code_changed_or_added(hash_of, module):
    assert hash_of(lambda folder: (folder / PACKAGE / module).open("a").write("\n")) != bundle_hash()


def test_it_is_another_with_a_module_more(hash_of):
    assert hash_of(lambda folder: (folder / PACKAGE / "more.py").write_text("")) != bundle_hash()
