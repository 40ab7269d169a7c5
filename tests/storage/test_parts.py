"""What is kept of one federation, control, level or student is never taken for another's."""

import itertools
import shutil

import pytest
import torch

from fed_distill.errors import CheckpointError
from fed_distill.storage import parts
from fed_distill.storage.parts import RunPart, check_layout, mark_layout
from fed_distill.storage.versions import CHECKPOINT_LAYOUT

WEIGHTS = {"a": torch.tensor([1.0, 2.0])}
KINDS = ("server", "control", "federation", "level")
NAMES = (".", "..", "fedmd", "server", "federations", "fedmd/personal", "fedmd.final", "x" * 300)


def test_every_part_has_a_folder_of_its_own_below_its_seeds(tmp_path):
    parts = [RunPart(tmp_path, seed, kind, name) for seed, kind, name in itertools.product((0, 1), KINDS, NAMES)]
    assert len({part.folder.resolve() for part in parts}) == len(parts)
    for part in parts:
        assert part.folder.resolve().parent.parent == tmp_path / f"seed-{part.seed}"
        assert len({part.rounds, part.final, part.outcome}) == 3


def test_what_was_written_is_read(tmp_path):
    part = RunPart(tmp_path, 3, "federation", "..")
    assert part.read(part.final) is None
    part.write(part.final, WEIGHTS, {"seconds": 2.0})
    tensors, values = part.read(part.final)
    assert torch.equal(tensors["a"], WEIGHTS["a"]) and values["seconds"] == 2.0


@pytest.mark.parametrize(("seed", "kind"), [(1, "federation"), (0, "control")])
def test_a_file_of_another_seed_or_kind_is_not_read(tmp_path, seed, kind):
    """Their files and folders have the same names, by which a checksum tells others apart."""
    part, other = RunPart(tmp_path, 0, "federation", "fedavg"), RunPart(tmp_path, seed, kind, "fedavg")
    for one in (part, other):
        one.write(one.rounds, WEIGHTS, {})
    shutil.copy(other.rounds, part.rounds)
    with pytest.raises(CheckpointError, match=r"rounds\.safetensors is not of federation fedavg on seed 0; put back"):
        part.read(part.rounds, "put back a copy")


def test_a_folder_that_another_version_laid_out_is_refused(tmp_path):
    state = tmp_path / "checkpoint"
    check_layout(state)  # a run of which nothing is kept yet
    mark_layout(state)
    check_layout(state)
    (marked,) = state.iterdir()
    for content in (f"{CHECKPOINT_LAYOUT - 1}\n", f"{CHECKPOINT_LAYOUT + 1}\n", ""):
        marked.write_text(content)
        with pytest.raises(CheckpointError, match="another version of fed-distill"):
            check_layout(state)
    marked.unlink()
    (state / "seed-0").mkdir()
    mark_layout(state)  # does not adopt what there is
    with pytest.raises(CheckpointError, match="another version of fed-distill"):
        check_layout(state)


def test_there_is_no_folder_before_it_says_how_it_is_laid_out(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    state = tmp_path / "checkpoint"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts, "write_atomic", interrupted)
        mark_layout(state)
    assert not state.exists()
    mark_layout(state)
    check_layout(state)
