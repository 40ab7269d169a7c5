"""A file that was damaged, edited, or checksum does not match is found by its checksum."""

import hashlib
import json
import subprocess

import pytest

from fed_distill.errors import CheckpointError, TrainingError
from fed_distill.storage.sealed import check_end, check_folder, checksum, read_sealed_json, replace_sealed_folder
from fed_distill.storage.sealed import sealed_json as sealed
from tests.conftest import flips

VALUE = {"round": 3, "seconds": 0.1, "merchants": {"Müller": [1, 2]}, "best": None}


def write(path, value=VALUE):
    path.parent.mkdir(exist_ok=True)
    path.write_text(sealed(value, path), encoding="utf-8")
    return path


def test_json_is_read_back_as_it_was_and_stays_readable_to_others(tmp_path):
    path = write(tmp_path / "one.json")
    assert read_sealed_json(path) == VALUE
    found = json.loads(path.read_text(encoding="utf-8"))
    digest = hashlib.sha256(f"{tmp_path.name}/one.json\n".encode() + json.dumps(VALUE, sort_keys=True).encode())
    assert found == {"sha256": digest.hexdigest(), **VALUE}


def test_a_flipped_bit_in_any_byte_of_json_gives_the_same_value_or_is_named(tmp_path):
    path = write(tmp_path / "one.json")
    data, named = path.read_bytes(), 0
    for changed in flips(data):
        path.write_bytes(changed)
        try:
            assert read_sealed_json(path) == VALUE
        except CheckpointError as error:
            assert "one.json" in str(error)
            named += 1
    assert named > 0.95 * len(data)  # the others turn one kind of white space into another


@pytest.mark.parametrize(
    ("text", "problem"),
    [('{"round": 3}', "has no checksum"), ("[1]", "has no checksum"), ("{", "is not valid JSON"), ("", "is not valid")],
)
def test_json_without_a_checksum_is_not_used(tmp_path, text, problem):
    path = tmp_path / "one.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"one\.json .*{problem}"):
        read_sealed_json(path)


@pytest.mark.parametrize("place", ["other.json", "../seed-1/one.json"])
def test_one_file_in_the_place_of_another_is_found(tmp_path, place):
    one, other = write(tmp_path / "seed-0" / "one.json"), write(tmp_path / "seed-0" / place)
    other.write_bytes(one.read_bytes())
    with pytest.raises(CheckpointError, match="checksum does not match"):
        read_sealed_json(other)


def test_what_is_no_number_is_not_sealed(tmp_path):
    with pytest.raises(TrainingError, match=r"one\.json: auc is nan"):
        sealed({"auc": float("nan")}, tmp_path / "one.json")


def test_a_file_that_ends_in_its_checksum_is_checked_whole(tmp_path):
    path, content = tmp_path / "labels.npy", bytes(range(256)) * 9
    whole = content + checksum(content, path)
    assert whole[len(content) :] == hashlib.sha256(f"{tmp_path.name}/labels.npy\n".encode() + content).digest()
    path.write_bytes(whole)
    check_end(path)
    other = tmp_path / "other.npy"
    for damaged in (b"", whole[:31], whole[:-1], whole[1:], whole + b"\0", b"\1" + whole[1:], whole[:-1] + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="its checksum does not match"):
            check_end(path)
    other.write_bytes(whole)
    with pytest.raises(ValueError, match="checksum does not match"):
        check_end(other)


@pytest.fixture
def folder(tmp_path):
    def fill(fresh):
        (fresh / "model.json").write_text("{}", encoding="utf-8")
        (fresh / "weights").mkdir()
        (fresh / "weights" / "part 1.bin").write_bytes(bytes(1000))

    replace_sealed_folder(tmp_path / "teacher", fill)
    return tmp_path / "teacher"


def test_a_folders_checksums_are_those_of_sha256sum(folder):
    check_folder(folder)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.json").write_text("{ }", encoding="utf-8"),
        lambda folder: (folder / "weights" / "part 1.bin").write_bytes(bytes(999)),
        lambda folder: (folder / "weights" / "part 1.bin").unlink(),
        lambda folder: (folder / "SHA256SUMS").unlink(),
        lambda folder: (folder / "SHA256SUMS").write_bytes((folder / "SHA256SUMS").read_bytes()[:-1]),
        lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"),
    ],
)
def test_a_folder_whose_files_have_changed_is_named(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError, match=r"teacher"):
        check_folder(folder)


def test_one_folder_in_the_place_of_another_is_found(folder, tmp_path):
    other = folder.rename(tmp_path / "other")
    with pytest.raises(CheckpointError, match="other do not match the checksums in SHA256SUMS"):
        check_folder(other)
