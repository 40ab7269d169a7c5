"""Names of models are checked without their libraries and without the network."""

import socket
import subprocess
import sys

import pytest

from fed_distill.config import TeacherConfig
from fed_distill.errors import ConfigError
from fed_distill.models.names import check_teacher


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network is used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilmm", "unknown teacher 'minilmm': .*did you mean minilm?"),
        ("bert-smal", "did you mean bert-small?"),
        ("nobody/nothing", "built in: minilm, bert-small, "),
        ("/no/such/folder", "neither built in nor a folder"),
    ],
)
def test_a_mistyped_teacher_is_found(name, message):
    with pytest.raises(ConfigError, match=message):
        check_teacher(TeacherConfig(model=name))


def test_a_near_miss_of_a_built_in_name_is_not_downloaded():
    with pytest.raises(ConfigError, match="did you mean minilm"):
        check_teacher(TeacherConfig(model="minilmm", options={"download": True}))


def test_folders_import_paths_downloads_and_cached_models_are_accepted(tmp_path, monkeypatch):
    cached = tmp_path / "models--shop--cross" / "snapshots" / ("0" * 40)
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}", encoding="utf-8")
    refs = cached.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model in ("bert-small", str(tmp_path), "my_package.mine:Teacher", "shop/cross"):
        check_teacher(TeacherConfig(model=model))
    check_teacher(TeacherConfig(model="shop/other", options={"download": True}))
    with pytest.raises(ConfigError, match="unknown teacher 'shop/other'"):
        check_teacher(TeacherConfig(model="shop/other"))


def test_registries_are_imported_without_torch():
    code = "import sys; from fed_distill.models import STUDENTS; print('torch' in sys.modules, 'lstm' in STUDENTS)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
