"""Approximate nearest vectors by a navigable small-world graph, with ``usearch``.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", TPAMI 2020. A graph is built once and is not changed, so that threads can search it while products change: new
products are searched exactly beside it, and deleted ones are skipped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fed_distill.errors import ConfigError, DataError
from fed_distill.serving.nearest import Mask, Rows, Vectors

CONNECTIVITY = 16
"""Edges of a vertex in each layer, M of the paper."""
EXPANSION_BUILD = 128
"""Candidates of a new vertex's neighbours, efConstruction of the paper."""
EXPANSION_SEARCH = 128
"""Candidates that a search keeps, ef of the paper; at least the number of vectors that are searched for."""

Progress = Callable[[int], None]
_CHUNK = 8192
_WIDER = 4


class NeighbourGraph:
    """A graph over the rows of a matrix of unit vectors, which it holds as 16-bit floats (``bfloat16``)."""

    def __init__(self, graph: Any, size: int) -> None:
        """Use ``build`` or ``read``. graph: a ``usearch.index.Index`` whose keys are rows. size: number of rows."""
        self._graph, self._size = graph, size

    @classmethod
    def build(cls, vectors: Vectors, threads: int = 1, progress: Progress | None = None) -> Self:
        """Build the graph of ``vectors`` ``[n, width]``, in n log n steps.

        :param threads: threads that add vectors. The graph, and thus what a search misses, depends on them
        :param progress: called with the number of vectors of each chunk that has been added
        :raises ConfigError: usearch is not installed
        """
        graph = require_usearch().Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype="bf16",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_BUILD,
            expansion_search=EXPANSION_SEARCH,
            enable_key_lookups=False,
        )
        for start in range(0, len(vectors), _CHUNK):
            chunk = np.ascontiguousarray(vectors[start : start + _CHUNK])
            graph.add(np.arange(start, start + len(chunk), dtype=np.uint64), chunk, threads=threads)
            if progress is not None:
                progress(len(chunk))
        return cls(graph, len(vectors))

    @classmethod
    def read(cls, path: Path, size: int, width: int) -> Self:
        """Map what ``write`` wrote into memory; raise DataError if it is not of ``size`` vectors of ``width``."""
        library = require_usearch()
        with path.open("rb"):
            pass  # raises FileNotFoundError, which usearch does not
        try:
            graph = library.Index.restore(str(path), view=True)
        except Exception as error:  # usearch raises nothing narrower
            raise DataError(f"{path} is not a graph of usearch: {error}") from error
        if graph is None or (len(graph), graph.ndim) != (size, width):
            found = "nothing" if graph is None else f"{len(graph):,} vectors of width {graph.ndim}"
            raise DataError(f"{path} has {found}, and its index {size:,} of width {width}: build the index again")
        graph.expansion_search = EXPANSION_SEARCH
        return cls(graph, size)

    def write(self, path: Path) -> None:
        """Write the graph to a file."""
        self._graph.save(str(path))

    @property
    def bytes(self) -> int:
        """Memory of the graph and its copies of the vectors."""
        return int(self._graph.memory_usage)

    @property
    def expansion(self) -> int:
        """Candidates that a search keeps, ef of the paper: more raise recall and time."""
        return int(self._graph.expansion_search)

    @expansion.setter
    def expansion(self, value: int) -> None:
        self._graph.expansion_search = value

    def candidates(self, query: Vectors, k: int, alive: Mask | None = None) -> Rows:
        """Return about the ``k`` rows nearest to ``query`` (``[width]``), ascending, int64 ``[at most k]``.

        :param alive: which rows count, bool ``[n]``; None: all. More rows are searched for until k of them count
        """
        wanted = min(k, self._size if alive is None else int(alive.sum()))
        if not wanted:
            return np.empty(0, dtype=np.int64)
        count = wanted
        while True:
            keys: npt.NDArray[np.uint64] = self._graph.search(query, count, threads=1).keys
            rows = keys.astype(np.int64)
            rows = (rows if alive is None else rows[alive[rows]])[:wanted]
            if len(rows) == wanted or count == self._size:
                return np.sort(rows)
            count = min(count * _WIDER, self._size)


def require_usearch() -> Any:
    """Return the module ``usearch.index``; raise ConfigError if it is not installed."""
    try:
        import usearch.index
    except ImportError as error:
        raise ConfigError(
            "engine 'usearch' requires the package usearch: pip install 'fed-distill[index]', or use engine 'exact'"
        ) from error
    return usearch.index
