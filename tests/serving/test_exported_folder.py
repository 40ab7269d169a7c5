"""A damaged or hostile export is refused with one clear error, and nothing outside of its folder is read."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fed_distill.errors import ConfigError, ModelError
from fed_distill.serving.exported_folder import ExportDescription, read_inside
from fed_distill.serving.runtime import load_exported


@pytest.fixture
def export(exported, tmp_path):
    """A copy of an export, to be changed."""
    return shutil.copytree(exported("two-tower")[1], tmp_path / "export")


def rewrite(export, change):
    """Change ``export.json`` and the hashes in it, as one who can write the folder would."""
    content = json.loads((export / "export.json").read_text(encoding="utf-8"))
    change(content)
    (export / "export.json").write_text(json.dumps(content), encoding="utf-8")


def replace_graph(export, name, data):
    """Replace a graph of float32, with its size and hash."""
    (export / "float32" / name).write_bytes(data)
    found = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(export, lambda content: content["variants"]["float32"]["files"].update({name: found}))


def test_a_flipped_bit_and_a_cut_file_are_found(export):
    path = export / "float32" / "vectors.onnx"
    whole = path.read_bytes()
    for broken in (whole[:-1], whole + b"x", whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], b""):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"vectors\.onnx"):
            load_exported(export)
    path.unlink()
    with pytest.raises(ModelError, match=r"vectors\.onnx cannot be read"):
        load_exported(export)
    load_exported(export, "int8")


@pytest.mark.parametrize("name", ["export.json", "student.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{" * 10_000, '{"format": 2}', '"\\ud800"', "\x00"])
def test_descriptions_that_are_none_are_refused(name, content, export):
    (export / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=name):
        load_exported(export)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content["variants"]["float32"]["files"].update({"../x.onnx": {}}), "vectors.onnx"),
        (lambda content: content["variants"].update({"..": content["variants"]["int8"]}), "float32"),
        (lambda content: content["variants"]["float32"]["files"].pop("head.onnx"), "must have"),
        (lambda content: content["graphs"].pop("head.onnx"), "must have"),
        (lambda content: content.update(width=None), "must have"),
        (lambda content: content.update(width=9), "gives float32"),
        (lambda content: content.update(width=10**10), "width"),
        (lambda content: content.update(code="import os"), "code"),
        *(
            (
                lambda content, bytes=bytes: content["variants"]["float32"]["files"]["vectors.onnx"].update(
                    bytes=bytes
                ),
                problem,
            )
            for bytes, problem in ((10**11, "bytes"), (2**31 - 1, "is damaged"))
        ),
    ],
)
def test_names_and_sizes_are_those_of_the_format(change, problem, export):
    rewrite(export, change)
    with pytest.raises(ModelError, match=problem):
        load_exported(export)


def test_a_file_is_not_read_when_it_is_larger_than_expected_nor_when_it_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_inside(tmp_path, "file", 10**18) == b"12345"  # nothing of this size is allocated
    with pytest.raises(ModelError, match="more than the 4 bytes"):
        read_inside(tmp_path, "file", 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read_inside(tmp_path, "pipe", 4)


@pytest.mark.parametrize("gain", ["NaN", "Infinity", "-Infinity", "1e308", "-1e7"])
def test_gains_are_finite_and_not_huge(gain, export):
    path = export / "student.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    count = len(content["task"]["gains"])
    content["task"]["gains"] = "GAINS"
    path.write_text(json.dumps(content).replace('"GAINS"', f"[{', '.join([gain] * count)}]"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"gains .* must be finite|NaN|Infinity"):
        load_exported(export)


@pytest.mark.parametrize("kind", ["two-tower", "lstm", "lstm, one text", "bert-mini"])
def test_a_table_has_the_rows_of_the_encoding(kind, exported, tmp_path):
    export = shutil.copytree(exported(kind)[1], tmp_path / "export")
    path = export / "student.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["encoding"]["rows"] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    for variant in ExportDescription.read(export).variants:
        with pytest.raises(ModelError, match=r"\.onnx does not fit student\.json"):
            load_exported(export, variant)


@pytest.mark.parametrize("name", ["float32/vectors.onnx", "student.json", "export.json"])
def test_a_link_out_of_the_folder_is_not_followed(name, export, tmp_path):
    (export / name).rename(tmp_path / "outside")
    (export / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="leads out of the folder"):
        load_exported(export)


def with_weights_in(location, graph):
    """The same graph, which names a file for its table."""
    model = onnx.ModelProto()
    model.ParseFromString(graph)
    table = next(one for one in model.graph.initializer if one.name == "table")
    content = table.raw_data
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(len(content))}.items():
        table.external_data.add(key=key, value=value)
    return model.SerializeToString(), content


@pytest.mark.parametrize("location", ["{out}/secret", "../../secret", "../../export/../secret", "secret", "link"])
def test_a_graph_reads_no_file_outside_of_the_folder(location, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph, weights = with_weights_in(location.format(out=tmp_path), (export / "float32/vectors.onnx").read_bytes())
    (tmp_path / "secret").write_bytes(weights)
    (export / "float32" / "link").symlink_to(tmp_path / "secret")
    replace_graph(export, "vectors.onnx", graph)
    with pytest.raises(ModelError, match=r"vectors\.onnx cannot be loaded"):
        load_exported(export)


def test_graphs_of_another_student_are_refused(export, exported):
    other = exported("two-tower, one text")[1] / "float32" / "head.onnx"
    replace_graph(export, "head.onnx", other.read_bytes())
    with pytest.raises(ModelError, match=r"head\.onnx does not fit"):
        load_exported(export)


def test_a_table_with_fewer_rows_than_the_encoding_is_refused(export):
    model = onnx.ModelProto()
    model.ParseFromString((export / "float32" / "vectors.onnx").read_bytes())
    table = next(one for one in model.graph.initializer if one.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(np.zeros((2, 8), dtype=np.float32), "table"))
    replace_graph(export, "vectors.onnx", model.SerializeToString())
    with pytest.raises(ModelError, match=r"vectors\.onnx does not fit"):
        load_exported(export)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("base", "0x1", "encoding.base"),
        ("rows", -1, "encoding.rows"),
        ("rows", 10**30, "encoding.rows"),
        ("rows", 10**9, r"vectors\.onnx does not fit"),
        ("max_features", 10**30, "encoding.max_features"),
        ("ngrams", [3] * 3000, "encoding.ngrams must be distinct"),
        ("ngrams", [99], "encoding.ngrams"),
        ("algorithm", "os:system", "os:system"),
        ("algorithm", "tokenizer.json", "swapped_ids"),
    ],
)
def test_an_encoding_that_this_program_does_not_have_is_refused(key, value, problem, export):
    path = export / "student.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["encoding"][key] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=problem):
        load_exported(export)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("rows", 1, "encoding.rows must be an integer of 4 to"),
        ("rows", 3, "encoding.rows must be an integer of 4 to"),
        ("max_length", 7, "encoding.max_length must be an integer of 8 to 65,536"),
        ("max_length", 65_537, "encoding.max_length must be an integer of 8 to 65,536"),
        ("max_length", True, "encoding.max_length"),
        ("max_length", 65, r"classifier\.onnx does not fit"),  # the network has 64 positions
    ],
)
def test_word_pieces_have_bounds(key, value, problem, exported, tmp_path):
    """The last case would have failed in the first request with a long text."""
    folder = tmp_path / "export"
    shutil.copytree(exported("bert-mini")[1], folder)
    content = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    content["encoding"][key] = value
    (folder / "student.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=problem):
        load_exported(folder)


def test_arguments_are_checked(export):
    with pytest.raises(ConfigError, match="no variant 'float8'; it has: float32, float16, int8, int4, pruned"):
        load_exported(export, "float8")
    with pytest.raises(ConfigError, match="threads"):
        load_exported(export, threads=0)
