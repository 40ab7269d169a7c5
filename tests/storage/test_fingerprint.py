"""What configurations depend on beside their words: files that they name, and code that import paths lead to."""

import hashlib
import json

import pytest

from fed_distill.errors import ConfigError
from fed_distill.storage.fingerprint import files_fingerprint, named_files, own_code, sources_fingerprint


def test_files_and_folders_are_known_by_their_contents(tmp_path):
    deep = tmp_path / "model" / "sub" / "weights"
    deep.parent.mkdir(parents=True)
    deep.write_text("1", encoding="utf-8")
    words = tmp_path / "words.txt"
    words.write_text("red", encoding="utf-8")
    named = {"options": {"path": str(tmp_path / "model"), "lists": [str(words), "linear", 3]}}
    first = named_files(named)
    assert set(first) == {str(tmp_path / "model"), str(words)}
    assert named_files(named) == first
    deep.write_text("2", encoding="utf-8")
    second = named_files(named)
    assert second[str(words)] == first[str(words)]
    assert second[str(tmp_path / "model")] != first[str(tmp_path / "model")]


def test_a_file_in_a_folder_is_known_by_its_place(tmp_path):
    place = tmp_path / "model" / "a" / "x.py"
    place.parent.mkdir(parents=True)
    place.write_text("1", encoding="utf-8")
    first = named_files(str(tmp_path / "model")), sources_fingerprint([tmp_path / "model"])
    place.parent.rename(tmp_path / "model" / "b")
    second = named_files(str(tmp_path / "model")), sources_fingerprint([tmp_path / "model"])
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_fingerprint_of_files_directly_in_a_folder_stays(tmp_path):
    """Results of earlier versions are cached by it."""
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    digests = [(name, hashlib.sha256(name.encode()).hexdigest()) for name in ("a.py", "b.py")]
    expected = hashlib.sha256(json.dumps({"files": digests}).encode()).hexdigest()[:32]
    assert named_files(str(tmp_path)) == {str(tmp_path): expected}
    assert sources_fingerprint([tmp_path]) == files_fingerprint(tmp_path.iterdir()) == expected


@pytest.mark.parametrize("text", ["linear", "", "not/there.txt", "a" * 5000 + "/b", "org/model"])
def test_other_texts_are_no_files(text, tmp_path, monkeypatch):
    (tmp_path / "linear").write_text("a file of that name", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert named_files([text]) == {}


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("red", encoding="utf-8")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ConfigError, match=r"words.txt cannot be read: Permission denied"):
        named_files(str(tmp_path / "words.txt"))


def test_own_code_is_that_of_the_module_or_of_all_its_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_package_of_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "models.py").write_text("Own = 1", encoding="utf-8")
    (tmp_path / "own_module_of_the_test.py").write_text("Own = 1", encoding="utf-8")
    names = ("own_package_of_the_test.models:Own", "own_module_of_the_test:Own")
    first = [own_code(name) for name in names]
    assert None not in first
    (package / "layers.py").write_text("added = 1", encoding="utf-8")
    (tmp_path / "own_module_of_the_test.py").write_text("Own = 2", encoding="utf-8")
    second = [own_code(name) for name in names]
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["minilm", "org/model", "no_such_module_of_the_test:Own", "C:/models/bert"])
def test_what_is_no_import_path_has_no_code(name):
    assert own_code(name) is None


def test_modules_without_sources_have_none_that_could_change():
    assert own_code("sys:path") == own_code("time:time") == sources_fingerprint([])


def test_sources_that_are_not_there_do_not_count(tmp_path):
    assert sources_fingerprint([tmp_path / "gone.py", tmp_path / "nowhere"]) == sources_fingerprint([])
