"""An index of products as a folder: written atomically, and mapped into memory when it is read.

``index.json`` (format, engine, width, number of products, the student's digest) names the files of the newest content:
``vectors-N.npy`` (float32 ``[n, width]``), ``products-N.arrow`` (Arrow IPC file with the columns ``id`` and ``title``)
and, of the engine ``usearch``, ``graph-N.usearch``. New content has files of new names; replacing ``index.json``, which
is one atomic rename, makes it the index. Nothing is pickled. NumPy and Arrow check what they read, usearch does not
promise to: read graphs only from folders that you trust.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from fed_distill.errors import CheckpointError, DataError
from fed_distill.serving.graph import NeighbourGraph
from fed_distill.serving.index import ProductBlock, ProductIndex, VectorStudent
from fed_distill.storage.files import make_folder, read_json, space_for, strict_json, sync_folder, write_atomic

FORMAT = 1
"""Version of the folder. Increase it with any change by which an earlier program would misread an index."""
INDEX = "index.json"
_BATCH = 65536
_ATTEMPTS = 3
"""Attempts to read an index that is replaced meanwhile."""
_KINDS = {"vectors": "npy", "products": "arrow", "graph": "usearch"}


class ArrowTexts(Sequence[str]):
    """A column of an Arrow table as a sequence of strings, each of which is decoded when it is asked for."""

    def __init__(self, column: Any) -> None:
        """column: a ``pyarrow.ChunkedArray`` of strings without nulls."""
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return ArrowTexts(self._column[at])
        return str(self._column[at].as_py())

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(chunk.to_pylist() for chunk in self._column.chunks)


def save_index(index: ProductIndex, folder: Path, digest: str) -> int:
    """Write an index into ``folder``, replacing one that is there, and return its size in bytes.

    The index is compacted first (``ProductIndex.compact``). A process that is killed leaves the former index; programs
    that have read it keep it.

    :param digest: the student's digest, which ``load_index`` requires
    :raises DataError: the folder has other files, or another process writes an index into it
    :raises CheckpointError: the disk is full
    """
    base = index.compact()
    with _only_writer(folder), space_for(folder, "build the index again"):
        number = uuid.uuid4().hex[:8]
        kinds = [kind for kind in _KINDS if kind != "graph" or base.graph is not None]
        files = {kind: f"{kind}-{number}.{_KINDS[kind]}" for kind in kinds}
        try:
            with (folder / files["vectors"]).open("wb") as vectors:
                np.save(vectors, base.vectors, allow_pickle=False)
            _write_products(folder / files["products"], base)
            if base.graph is not None:
                base.graph.write(folder / files["graph"])
            for name in files.values():
                with (folder / name).open("rb") as written:
                    os.fsync(written.fileno())
            sync_folder(folder)
            content = {
                "format": FORMAT,
                "engine": index.engine,
                "products": len(base.vectors),
                "width": base.vectors.shape[1],
                "student": digest,
                "files": files,
            }
            write_atomic(folder / INDEX, strict_json(content, INDEX, indent=1) + "\n")
        except BaseException:
            for name in files.values():
                (folder / name).unlink(missing_ok=True)
            raise
        for path in _content(folder):
            if path.name not in files.values():
                path.unlink()
        return sum((folder / name).stat().st_size for name in (INDEX, *files.values()))


def check_folder(folder: Path) -> None:
    """Raise DataError if ``folder`` is a file, or has files that are not an index's, which a save would mix with."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: choose a new folder for the index")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    other = sorted(names - {path.name for path in _content(folder)} - {INDEX})
    if other:
        raise DataError(f"{folder} has other files than an index ({other[0]}): choose a new folder")


def load_index(folder: Path, student: VectorStudent, digest: str) -> ProductIndex:
    """Read an index; vectors, products and graph are mapped into memory.

    :param student: embeds queries and new titles, and scores
    :param digest: the student's digest
    :raises DataError: there is no index, it is damaged or of another format, or its vectors are another student's
    """
    path = folder / INDEX
    for _ in range(_ATTEMPTS):
        content = _read_description(path, digest)
        try:
            return ProductIndex(student, _read_block(folder, content))
        except FileNotFoundError as error:  # another process may have replaced the index
            missing = error
        except (
            OSError,
            ValueError,
            ArithmeticError,
            LookupError,
            TypeError,
            AttributeError,
            pa.ArrowException,
        ) as error:
            raise DataError(f"{folder} is not an intact index: {error}; build it again: fed-distill index") from error
    raise DataError(f"{folder} is not an intact index: {missing}; build it again: fed-distill index") from missing


def _read_description(path: Path, digest: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(path)
        number, student = content["format"], content["student"]
    except (CheckpointError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{path.parent} is not an index of products: {error}; build it: fed-distill index") from error
    if number != FORMAT:
        raise DataError(
            f"{path} has format {number!r}, and this version of fed-distill reads format {FORMAT}: build the index "
            "again with fed-distill index"
        )
    if student != digest:
        raise DataError(
            f"the vectors in {path.parent} are of another student (digest {student}, not {digest}): build the index "
            "again with fed-distill index, or serve that student"
        )
    return content


def _read_block(folder: Path, content: dict[str, Any]) -> ProductBlock:
    size, width, files = int(content["products"]), int(content["width"]), content["files"]
    for name in files.values():
        if Path(name).name != name:
            raise ValueError(f"file {name!r} is outside the folder")
    vectors = np.load(folder / files["vectors"], mmap_mode="r" if size else None, allow_pickle=False)
    if vectors.shape != (size, width) or vectors.dtype != np.float32:
        raise ValueError(f"{files['vectors']} has {vectors.dtype} {list(vectors.shape)}")
    ids, titles = _read_products(folder / files["products"], size)
    graph = NeighbourGraph.read(folder / files["graph"], size, width) if content["engine"] == "usearch" else None
    return ProductBlock(vectors, np.ones(size, dtype=np.bool_), ids, titles, graph)


def _write_products(path: Path, block: ProductBlock) -> None:
    schema = pa.schema([("id", pa.large_string()), ("title", pa.large_string())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(block.vectors), _BATCH):
            rows = slice(start, min(start + _BATCH, len(block.vectors)))
            columns = [list(block.ids[rows]), list(block.titles[rows])]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _read_products(path: Path, size: int) -> tuple[ArrowTexts, ArrowTexts]:
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    for name in ("id", "title"):
        column = table.column(name)
        if not pa.types.is_large_string(column.type) or len(column) != size or column.null_count:
            raise ValueError(f"{path.name}: column {name!r} is not {size:,} strings")
    table.validate(full=True)
    return ArrowTexts(table.column("id")), ArrowTexts(table.column("title"))


def _content(folder: Path) -> list[Path]:
    """Return the files of indexes in ``folder``, of the newest one and of what a killed process left."""
    return [path for kind, suffix in _KINDS.items() for path in folder.glob(f"{kind}-*.{suffix}")] + list(
        folder.glob(f".{INDEX}.*.tmp")
    )


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Create ``folder`` and lock it; raise DataError as ``check_folder``, or if another process has locked it."""
    check_folder(folder)
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process writes an index into {folder}: wait for it") from error
        yield
    finally:
        os.close(descriptor)
