"""An index of products as a folder: written atomically, and mapped into memory when it is read.

``index.json`` (format, engine, width, number of products, the student's digest) names the files of the newest content:
``vectors-N.npy`` (float32 ``[n, width]``), ``products-N.arrow`` (Arrow IPC file with the columns ``id`` and ``title``)
and, of the engine ``usearch``, ``graph-N.usearch``. New content has files of new names; replacing ``index.json``, which
is one atomic rename, makes it the index. Nothing is pickled. Vectors and products are read with distrust: they must be
as written here, uncompressed, so that they are mapped and need no memory beyond their files. usearch does not promise
to check what it reads: read graphs only from folders that you trust.
"""

import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from fed_distill.errors import CheckpointError, DataError
from fed_distill.serving.graph import NeighbourGraph
from fed_distill.serving.index import Engine, ProductBlock, ProductIndex, VectorStudent
from fed_distill.serving.nearest import Vectors
from fed_distill.storage.files import (
    leads_out,
    make_folder,
    read_json,
    space_for,
    strict_json,
    sync_folder,
    write_atomic,
)

Result = TypeVar("Result")
FORMAT = 1
"""Version of the folder. Increase it with any change by which an earlier program would misread an index."""
INDEX = "index.json"
_SCHEMA = pa.schema([("id", pa.large_string()), ("title", pa.large_string())])
_MAGIC = b"ARROW1\0\0"
"""First bytes of an Arrow file; messages follow."""
_BATCH = 65536
_UNIT = 1e-3
"""Largest difference of the squared length of a unit vector from 1."""
_ATTEMPTS = 3
"""Attempts to read an index that is replaced meanwhile."""
_KINDS = {"vectors": "npy", "products": "arrow", "graph": "usearch"}


class IndexBusy(DataError):
    """Another process writes an index into the folder."""


class _Description(BaseModel):
    """Content of ``index.json``, apart from ``format`` and ``student``."""

    model_config = ConfigDict(strict=True, frozen=True)
    engine: Engine
    products: NonNegativeInt
    width: PositiveInt
    files: dict[Literal["vectors", "products", "graph"], Annotated[str, Field(min_length=1)]]


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
    index.compact()
    check_folder(folder)
    make_folder(folder)
    with _only_writer(folder):
        return _replace(folder, index, digest)


def change_index(folder: Path, student: VectorStudent, digest: str, change: Callable[[ProductIndex], Result]) -> Result:
    """Change the index that is saved in ``folder``, atomically, and return what ``change`` returns.

    No other process writes between the reading and the writing. If ``change`` raises, or changes nothing, nothing is
    written. Parameters and errors are those of ``load_index`` and ``save_index``.

    :raises IndexBusy: another process writes an index into the folder
    """
    with _only_writer(folder):
        index = load_index(folder, student, digest)
        before = index.snapshot()
        result = change(index)
        if index.snapshot() is not before:
            _replace(folder, index, digest)
        return result


def _replace(folder: Path, index: ProductIndex, digest: str) -> int:
    """Write the index, remove the files of the former one, and return the size; the folder is locked."""
    base = index.compact()
    with space_for(folder, "build the index again"):
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
            for name in set(files.values()) - {path.name for path in current_files(folder)}:
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
            description = _Description.model_validate(content)
            width = student.embed([]).shape[1]
            if description.width != width:
                raise ValueError(f"width is {description.width}, and the student's vectors have {width}")
            return ProductIndex(student, _read_block(folder, description))
        except FileNotFoundError as error:  # another process may have replaced the index
            missing = error
        except (
            OSError,
            ValueError,
            ArithmeticError,
            LookupError,
            TypeError,
            AttributeError,
            struct.error,
            pa.ArrowException,
        ) as error:
            raise DataError(f"{folder} is not an intact index: {error}; build it again: fed-distill index") from error
    raise DataError(f"{folder} is not an intact index: {missing}; build it again: fed-distill index") from missing


def current_files(folder: Path) -> list[Path]:
    """Return the files that ``index.json`` names, which need not exist; none if it cannot be read."""
    try:
        description = _Description.model_validate(read_json(folder / INDEX))
    except (CheckpointError, ValueError, RecursionError):
        return []
    return sorted(folder / name for name in description.files.values())


def _read_description(path: Path, digest: str) -> dict[str, Any]:
    if leads_out(path, path.parent):
        raise DataError(f"{path} leads out of the folder of the index: copy the file itself")
    try:
        content: dict[str, Any] = read_json(path)
        number, student = content["format"], content["student"]
    except (CheckpointError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{path.parent} is not an index of products: {error}; build it: fed-distill index") from error
    if type(number) is not int or number != FORMAT:
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


def _read_block(folder: Path, description: _Description) -> ProductBlock:
    size, width, paths = description.products, description.width, {}
    kinds = [kind for kind in _KINDS if kind != "graph" or description.engine == "usearch"]
    if sorted(description.files) != sorted(kinds):
        raise ValueError(f"files has {sorted(description.files)}, and engine {description.engine!r} {sorted(kinds)}")
    for kind, name in description.files.items():
        path = folder / name
        if Path(name).name != name or leads_out(path, folder):
            raise ValueError(f"file {name!r} is outside the folder")
        if path.exists() and not path.is_file():
            raise ValueError(f"{name!r} is not a file")
        paths[kind] = path
    vectors = _read_vectors(paths["vectors"], size, width)
    ids, titles = _read_products(paths["products"], size)
    graph = NeighbourGraph.read(paths["graph"], size, width) if "graph" in paths else None
    return ProductBlock(vectors, np.ones(size, dtype=np.bool_), ids, titles, graph)


def _read_vectors(path: Path, size: int, width: int) -> Vectors:
    """Map the vectors, float32 ``[size, width]``; raise ValueError if the file has others."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # the parser of headers raises nothing narrower
            raise ValueError(f"{path.name} has no header of NumPy: {error}") from error
        start, end = file.tell(), os.fstat(file.fileno()).st_size
    if version != (1, 0) or fortran or dtype != np.dtype("<f4") or shape != (size, width):
        raise ValueError(f"{path.name} has {dtype} {list(shape)}")
    if end - start != 4 * size * width:
        raise ValueError(f"{path.name} has {end - start:,} bytes of vectors, and must have {4 * size * width:,}")
    if not size:
        return np.empty((0, width), dtype=np.float32)
    vectors: Vectors = np.memmap(path, dtype=np.float32, mode="r", offset=start, shape=(size, width))
    for first in range(0, size, _BATCH):
        rows = vectors[first : first + _BATCH]
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.einsum("nw,nw->n", rows, rows)
            wrong = np.flatnonzero(~((lengths == 0) | (np.abs(lengths - 1) <= _UNIT)))
        if len(wrong):
            raise ValueError(f"row {first + int(wrong[0])} of {path.name} is not a vector of length 1 or 0")
    return vectors


def _write_products(path: Path, block: ProductBlock) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for start in range(0, len(block.vectors), _BATCH):
            rows = slice(start, min(start + _BATCH, len(block.vectors)))
            columns = [list(block.ids[rows]), list(block.titles[rows])]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


def _read_products(path: Path, size: int) -> tuple[ArrowTexts, ArrowTexts]:
    """Map the ids and titles; raise ValueError if the file is not as ``_write_products`` writes it.

    Its messages are read one by one, in order, as each must be checked before Arrow would decompress it.
    """
    source = pa.memory_map(str(path))
    if source.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(f"{path.name} is not an Arrow file")
    messages = iter(pa.ipc.MessageReader.open_stream(source))
    first = next(messages, None)
    if first is None or first.type != "schema" or not pa.ipc.read_schema(first).equals(_SCHEMA, check_metadata=True):
        raise ValueError(f"{path.name} has other columns than id and title, two texts")
    batches = []
    for message in messages:
        if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
            raise ValueError(f"{path.name} is compressed, or has other content than rows")
        batches.append(pa.ipc.read_record_batch(message, _SCHEMA))
    table = pa.Table.from_batches(batches, _SCHEMA)
    table.validate(full=True)
    for name in _SCHEMA.names:
        if len(table) != size or table.column(name).null_count:
            raise ValueError(f"{path.name}: column {name!r} is not {size:,} strings")
    if pc.count_distinct(table.column("id")).as_py() != size:
        raise ValueError(f"{path.name} has an id twice")
    return ArrowTexts(table.column("id")), ArrowTexts(table.column("title"))


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the buffers of a record batch are compressed, which PyArrow does not tell.

    :param metadata: a ``Message`` of Arrow's Message.fbs, which Arrow has verified. Its field 2, ``header``, is a table
        ``RecordBatch``, and field 3 of this, ``compression``, is absent if there is none
    """
    message: int = struct.unpack_from("<I", metadata, 0)[0]
    header = message + _field(metadata, message, 2)
    batch: int = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, 3) != 0


def _field(data: bytes, table: int, number: int) -> int:
    """Return the offset of a field in a table of FlatBuffers, from the table's start; 0 if it is absent."""
    offsets = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, offsets)
    place = 4 + 2 * number
    return int(struct.unpack_from("<H", data, offsets + place)[0]) if place < size else 0


def _content(folder: Path) -> list[Path]:
    """Return the files of indexes in ``folder``, of the newest one and of what a killed process left."""
    return [path for kind, suffix in _KINDS.items() for path in folder.glob(f"{kind}-*.{suffix}")] + list(
        folder.glob(f".{INDEX}.*.tmp")
    )


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Lock ``folder``; raise IndexBusy if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IndexBusy(f"another process writes an index into {folder}: wait for it") from error
        yield
    finally:
        os.close(descriptor)
