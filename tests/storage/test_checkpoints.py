"""A checkpoint is read as it was written, or named as unreadable; a failed write leaves the old one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fed_distill.errors import CheckpointError, TrainingError
from fed_distill.storage.checkpoints import read_checkpoint, write_checkpoint
from tests.conftest import flips

TENSORS = {"weights/a": torch.tensor([[1.5, -0.0], [float(2**-149), 3e38]]), "count": torch.tensor(7)}
VALUES = {"round": 3, "started": ["Müller & Söhne"], "seconds": 0.1}


def test_tensors_and_values_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "deep" / "state.safetensors"
    write_checkpoint(path, TENSORS, VALUES)
    tensors, values = read_checkpoint(path)
    assert values == VALUES
    assert {name: value.numpy().tobytes() for name, value in tensors.items()} == {
        name: value.numpy().tobytes() for name, value in TENSORS.items()
    }


def test_the_file_is_plain_safetensors_and_stands_alone(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, TENSORS, VALUES)
    assert set(load_file(path)) == set(TENSORS)
    assert [found.name for found in tmp_path.iterdir()] == ["state.safetensors"]


def test_views_that_share_memory_are_written(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    write_checkpoint(tmp_path / "state.safetensors", {"turned": whole.T}, {})
    assert torch.equal(read_checkpoint(tmp_path / "state.safetensors")[0]["turned"], whole.T)


def test_no_checkpoint_is_none(tmp_path):
    assert read_checkpoint(tmp_path / "none.safetensors") is None


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"\x80\x04pickle" + data])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, TENSORS, VALUES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        CheckpointError, match=r"state\.safetensors cannot be read .*delete it to train this part again"
    ):
        read_checkpoint(path)


KINDS = {
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
    "int64": torch.tensor([[2**40]]),
}


def test_every_kind_of_tensor_is_covered(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, KINDS, {})
    tensors, _ = read_checkpoint(path)
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in KINDS.items()
    )


def test_a_flipped_bit_in_any_byte_gives_the_same_content_or_is_named(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, TENSORS, VALUES)
    data, equal = path.read_bytes(), 0
    for changed in flips(data):
        path.write_bytes(changed)
        try:
            tensors, values = read_checkpoint(path)
        except CheckpointError as error:
            assert "state.safetensors cannot be read" in str(error)
            continue
        assert values == VALUES
        assert {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()} == {
            name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in TENSORS.items()
        }
        equal += 1
    assert equal < 8  # only white space between what is covered


def test_equal_content_gives_equal_bytes(tmp_path):
    values = {f"value {number}": number for number in range(20)}
    written = []
    for _ in range(5):
        write_checkpoint(tmp_path / "state.safetensors", {**TENSORS, **KINDS}, values)
        written.append((tmp_path / "state.safetensors").read_bytes())
    assert len(set(written)) == 1


@pytest.mark.parametrize("place", ["seed-0/fedmd.safetensors", "seed-1/fedavg.safetensors"])
def test_one_checkpoint_in_the_place_of_another_is_named(tmp_path, place):
    for name in ("seed-0/fedavg.safetensors", place):
        write_checkpoint(tmp_path / name, TENSORS, VALUES)
    shutil.copy(tmp_path / "seed-0" / "fedavg.safetensors", tmp_path / place)
    with pytest.raises(CheckpointError, match="checksum does not match"):
        read_checkpoint(tmp_path / place)


def test_a_checkpoint_without_a_checksum_is_not_used(tmp_path):
    path = tmp_path / "state.safetensors"
    save_file(TENSORS, path, metadata={"values": json.dumps(VALUES)})
    with pytest.raises(CheckpointError, match=r"has no checksum: .*; delete it to train this part again"):
        read_checkpoint(path)


def test_a_value_that_is_no_number_is_refused_and_the_old_checkpoint_kept(tmp_path):
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, TENSORS, VALUES)
    with pytest.raises(TrainingError, match="seconds is nan"):
        write_checkpoint(path, {}, {"seconds": float("nan")})
    assert read_checkpoint(path)[1] == VALUES
