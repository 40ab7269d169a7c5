"""An index on disk is whole, of one student, and the former one if its writer is killed."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fed_distill.errors import DataError
from fed_distill.serving import index_files
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import INDEX, current_files, load_index, save_index
from fed_distill.storage import files

ROOT = Path(__file__).parents[2]
PRODUCTS = [Product(f"p{number}", f"red phone {number} 手机") for number in range(50)]
ENGINES = ("exact", "usearch")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_read_finds_what_was_written_and_can_be_changed(searching, tmp_path, engine):
    index = ProductIndex.build(searching, PRODUCTS, engine)
    index.delete(["p3"])
    index.add([Product("new", "ultra kettle")])
    size = save_index(index, tmp_path / "index", "digest")
    assert size == sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    read = load_index(tmp_path / "index", searching, "digest")
    assert (len(read), read.engine) == (50, engine)
    for query in ("red phone 7", "kettle"):
        assert read.search(query, 60) == index.search(query, 60)
    assert isinstance(read.snapshot()[0].vectors, np.memmap)
    read.replace([Product("p4", "blue shoe")])
    read.delete(["new"])
    save_index(read, tmp_path / "index", "digest")  # while it is mapped
    again = load_index(tmp_path / "index", searching, "digest")
    assert {hit.id: hit.title for hit in again.search("shoe", 60)}["p4"] == "blue shoe"
    assert len(again) == 49


def test_an_empty_index_is_kept_too(searching, tmp_path):
    save_index(ProductIndex.build(searching, []), tmp_path / "index", "digest")
    read = load_index(tmp_path / "index", searching, "digest")
    assert read.search("red phone") == []
    read.add(PRODUCTS)
    assert len(read.search("red phone")) == 10


def test_another_student_and_another_format_are_refused(searching, tmp_path):
    save_index(ProductIndex.build(searching, PRODUCTS), tmp_path / "index", "digest")
    with pytest.raises(DataError, match=r"of another student \(digest digest, not other\)"):
        load_index(tmp_path / "index", searching, "other")
    description = tmp_path / "index" / INDEX
    description.write_text(json.dumps(json.loads(description.read_text()) | {"format": 2}))
    with pytest.raises(DataError, match="has format 2, and this version of fed-distill reads format 1"):
        load_index(tmp_path / "index", searching, "digest")
    with pytest.raises(DataError, match="is not an index of products"):
        load_index(tmp_path / "nothing", searching, "digest")


def test_a_student_is_told_from_another_by_its_digest(searching, task):
    from fed_distill.models import build_student
    from fed_distill.models.student_folder import StudentDescription
    from fed_distill.serving.student import Student

    def copy(change):
        model = build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, task)
        model.load_state_dict(searching.model.state_dict())
        change(model)
        return Student(model, StudentDescription(task, 60)).digest

    assert copy(lambda model: None) == searching.digest
    assert copy(lambda model: model.bag.table.data[7].add_(1e-6)) != searching.digest
    assert copy(lambda model: setattr(model, "settings", {**model.settings, "ngrams": (2,)})) != searching.digest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_an_error(searching, tmp_path, engine, damage):
    save_index(ProductIndex.build(searching, PRODUCTS, engine), tmp_path / "index", "digest")
    for path in (tmp_path / "index").iterdir():
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"other")
        with pytest.raises(DataError, match=r"is not an (intact )?index|is not a graph"):
            load_index(tmp_path / "index", searching, "digest")
        path.write_bytes(content)
    assert len(load_index(tmp_path / "index", searching, "digest")) == 50


@pytest.mark.parametrize("name", ["../vectors.npy", "/etc/hostname"])
def test_a_description_names_no_file_elsewhere(searching, tmp_path, name):
    save_index(ProductIndex.build(searching, PRODUCTS), tmp_path / "index", "digest")
    description = tmp_path / "index" / INDEX
    content = json.loads(description.read_text())
    content["files"]["vectors"] = name
    description.write_text(json.dumps(content))
    with pytest.raises(DataError, match="outside the folder"):
        load_index(tmp_path / "index", searching, "digest")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": 1, "student": "digest", "products": Infinity, "width": 8, "files": {}}',
        '{"format": 1, "student": "digest", "products": 50, "width": 8, "files": []}',
        '{"format": 1, "student": "digest", "products": 50, "width": 8, "files": {"vectors": 7}}',
    ],
)
def test_a_description_that_is_none_is_an_error(searching, tmp_path, content):
    save_index(ProductIndex.build(searching, PRODUCTS), tmp_path / "index", "digest")
    (tmp_path / "index" / INDEX).write_text(content)
    with pytest.raises(DataError, match=r"is not an (intact )?index"):
        load_index(tmp_path / "index", searching, "digest")


def test_the_current_files_are_those_that_the_description_names(searching, tmp_path):
    assert current_files(tmp_path / "nothing") == []
    save_index(ProductIndex.build(searching, PRODUCTS, "usearch"), tmp_path, "digest")
    (tmp_path / "vectors-0a1b2c3d.npy").write_bytes(b"left by a killed process")
    assert current_files(tmp_path) == sorted(change(tmp_path).values())
    for damaged in ("[", "[" * 100_000, "[]", "{}"):
        (tmp_path / INDEX).write_text(damaged)
        assert current_files(tmp_path) == []


def test_a_graph_of_other_vectors_is_an_error(searching, tmp_path):
    save_index(ProductIndex.build(searching, PRODUCTS, "usearch"), tmp_path / "one", "digest")
    save_index(ProductIndex.build(searching, PRODUCTS[:9], "usearch"), tmp_path / "two", "digest")
    small, large = (next((tmp_path / name).glob("graph-*")) for name in ("two", "one"))
    large.write_bytes(small.read_bytes())
    with pytest.raises(DataError, match="has 9 vectors of width 8, and its index 50 of width 8"):
        load_index(tmp_path / "one", searching, "digest")


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from fed_distill.serving import index_files
from fed_distill.serving.index import Product, ProductIndex

class Ones:
    def embed(self, texts):
        return np.ones((len(texts), 1), dtype=np.float32)

    def score_vectors(self, query, titles):
        return np.ones(len(titles))

place, folder = sys.argv[1], Path(sys.argv[2])
original = getattr(index_files, place)

def last(*arguments):
    if place == "sync_folder":
        original(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(index_files, place, last)
index_files.save_index(ProductIndex.build(Ones(), [Product("fresh", "a")], "usearch"), folder, "digest")
"""


@pytest.mark.parametrize("place", ["_write_products", "sync_folder", "write_atomic"])
def test_a_writer_that_is_killed_leaves_the_former_index_and_nothing_for_long(searching, tmp_path, place):
    folder = tmp_path / "index"
    save_index(ProductIndex.build(searching, PRODUCTS), folder, "digest")
    before = {path.name for path in folder.iterdir()}
    done = subprocess.run([sys.executable, "-c", KILLED, place, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in folder.iterdir()} > before
    assert len(load_index(folder, searching, "digest")) == 50
    save_index(ProductIndex.build(searching, PRODUCTS[:2]), folder, "digest")
    assert len(list(folder.iterdir())) == len(before)


def test_a_failed_write_leaves_nothing_behind(searching, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    save_index(ProductIndex.build(searching, PRODUCTS), folder, "digest")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_files, "write_atomic", fail)
    with pytest.raises(KeyboardInterrupt):
        save_index(ProductIndex.build(searching, PRODUCTS[:2]), folder, "digest")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_an_error_after_the_description_was_replaced_leaves_the_new_index(searching, tmp_path, monkeypatch, error):
    folder = tmp_path / "index"
    save_index(ProductIndex.build(searching, PRODUCTS), folder, "digest")

    def fail(*_):
        raise error

    monkeypatch.setattr(files, "sync_folder", fail)
    with pytest.raises(type(error)):
        save_index(ProductIndex.build(searching, PRODUCTS[:2]), folder, "digest")
    monkeypatch.undo()
    assert len(load_index(folder, searching, "digest")) == 2
    save_index(ProductIndex.build(searching, PRODUCTS), folder, "digest")
    assert len(list(folder.iterdir())) == 3


def test_a_folder_with_other_files_and_a_second_writer_are_errors(searching, tmp_path):
    index = ProductIndex.build(searching, PRODUCTS)
    (tmp_path / "photo.jpg").write_text("keep me")
    with pytest.raises(DataError, match=r"has other files than an index \(photo.jpg\)"):
        save_index(index, tmp_path, "digest")
    folder = tmp_path / "index"
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(DataError, match="another process writes an index"):
        save_index(index, folder, "digest")
    os.close(descriptor)
    save_index(index, folder, "digest")


def test_readers_always_find_one_whole_index_while_it_is_replaced(searching, tmp_path):
    small, large = (ProductIndex.build(searching, PRODUCTS[:count]) for count in (5, 50))
    save_index(small, tmp_path / "index", "digest")
    stop, sizes = threading.Event(), set()

    def read():
        while not stop.is_set():
            sizes.add(len(load_index(tmp_path / "index", searching, "digest").search("red", 60)))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        save_index(large, tmp_path / "index", "digest")
        save_index(small, tmp_path / "index", "digest")
    stop.set()
    reader.join()
    assert sizes and sizes <= {5, 50}


def change(folder, **values):
    """Change ``index.json``; return the paths of the files that it names."""
    content = json.loads((folder / INDEX).read_text()) | values
    (folder / INDEX).write_text(json.dumps(content))
    return {kind: folder / name for kind, name in content["files"].items()} if content["files"] else {}


def put_products(path, columns, **options):
    batch = pa.record_batch([pa.array(texts, pa.large_string()) for texts in columns.values()], names=list(columns))
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer,
    ):
        writer.write_batch(batch)


TEXTS = [str(number) for number in range(50)]


@pytest.mark.parametrize(
    ("columns", "options", "problem"),
    [
        ({"id": TEXTS, "title": TEXTS, "extra": ["a" * 100_000] * 50}, {"compression": "zstd"}, "other columns"),
        ({"title": TEXTS, "id": TEXTS}, {}, "other columns"),
        ({"id": TEXTS, "title": ["a" * 100_000] * 50}, {"compression": "zstd"}, "is compressed"),
        ({"id": TEXTS, "title": ["a" * 100_000] * 50}, {"compression": "lz4"}, "is compressed"),
        ({"id": ["7"] * 50, "title": TEXTS}, {}, "has an id twice"),
        ({"id": TEXTS[1:], "title": TEXTS[1:]}, {}, "is not 50 strings"),
        ({"id": TEXTS, "title": [None, *TEXTS[1:]]}, {}, "is not 50 strings"),
    ],
)
def test_products_are_refused_before_they_take_memory(searching, tmp_path, columns, options, problem):
    save_index(ProductIndex.build(searching, PRODUCTS), tmp_path, "digest")
    put_products(change(tmp_path)["products"], columns, **options)
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=problem):
        load_index(tmp_path, searching, "digest")
    assert pa.total_allocated_bytes() - before < 100_000


def npy(shape, body=b"", descr="<f4", fortran=False):
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


UNIT = np.eye(50, 8, dtype="<f4")


def with_row(value):
    vectors = UNIT.copy()
    vectors[20] = value
    return npy((50, 8), vectors.tobytes())


@pytest.mark.parametrize(
    ("content", "products"),
    [
        (npy((2**31, 8)), 0),
        (npy((0, 2**40)), 0),
        (npy((50, 8)), 50),
        (npy((50, 8), UNIT.tobytes() + b"x"), 50),
        (npy((50, 8), UNIT.tobytes(), fortran=True), 50),
        (npy((50, 8), UNIT.tobytes(), descr=">f4"), 50),
        (npy((50, 8), UNIT.tobytes(), descr="|O"), 50),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"(" * 8999 + b"\n", 50),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 8999 + b"\n", 50),
        (b"PK\x03\x04" + b"x" * 100, 50),
        *((with_row(value), 50) for value in (np.nan, np.inf, 3e38, 0.1)),
    ],
)
def test_vectors_are_checked_before_they_are_mapped(searching, tmp_path, content, products):
    save_index(ProductIndex.build(searching, PRODUCTS[:products]), tmp_path, "digest")
    path = change(tmp_path)["vectors"]
    path.write_bytes(npy((50, 8), UNIT.tobytes()) if products else npy((0, 8)))
    assert len(load_index(tmp_path, searching, "digest")) == products  # vectors of length 1 and 0 are fine
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not an intact index: "):
        load_index(tmp_path, searching, "digest")


@pytest.mark.parametrize(
    "values",
    [
        {"engine": []},
        {"engine": "usearch"},
        {"format": True},
        {"products": "50"},
        {"products": True},
        {"width": 9},
        {"width": 8.0},
        {"files": {}},
    ],
)
def test_a_description_has_the_types_of_the_format(searching, tmp_path, values):
    save_index(ProductIndex.build(searching, PRODUCTS), tmp_path, "digest")
    change(tmp_path, **values)
    with pytest.raises(DataError, match=r"is not an intact index|has format True"):
        load_index(tmp_path, searching, "digest")


@pytest.mark.parametrize("kind", ["index", "vectors", "products", "graph"])
def test_a_link_out_of_the_folder_is_not_followed(searching, tmp_path, kind):
    folder = tmp_path / "index"
    save_index(ProductIndex.build(searching, PRODUCTS, "usearch"), folder, "digest")
    path = {**change(folder), "index": folder / INDEX}[kind]
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"outside the folder|leads out of the folder"):
        load_index(folder, searching, "digest")
