"""Run an exported student by onnxruntime and NumPy, without torch.

What a folder says is checked before it is used (``exported_folder``). An ONNX graph has no code, but may name
a file with its weights: onnxruntime is given the variant's folder for these, and reads none outside of it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fed_distill.data.student_description import StudentDescription, read_encoding
from fed_distill.errors import ConfigError, ModelError
from fed_distill.serving.exported_folder import (
    CLASSIFIER,
    HEAD,
    OF_TOWERS,
    VECTORS,
    ExportDescription,
    GraphName,
    VariantName,
    check_inside,
)
from fed_distill.serving.scorer import Probabilities, Scorer, Vectors
from fed_distill.text.encoders import TOKENIZER, Encoder, encoder_of
from fed_distill.text.tokens import Fields

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_CHUNK = 8192
"""Texts that are encoded at once."""
_BATCH = 256
"""Texts in one run of a graph."""
_LONGEST_CHECKED = 10_000
"""Characters of the longest text that graphs are checked with."""


class ExportedStudent(Scorer):
    """A student that was exported, with the methods of ``Student``; ``load_exported`` loads one.

    description: content of ``export.json``. variant: the variant that is run.
    """

    def __init__(
        self, scoring: "OnnxScoring", student: StudentDescription, description: ExportDescription, variant: VariantName
    ) -> None:
        super().__init__(scoring, student)
        self.description, self.variant = description, variant


class OnnxScoring:
    """Computes a student by onnxruntime; see ``Scoring``."""

    def __init__(
        self, graphs: Mapping[str, "OnnxGraph"], encode: Encoder, description: ExportDescription, variant: str
    ) -> None:
        self._graphs, self._encode = graphs, encode
        self.kind, self.width = description.kind, description.width
        self.digest = description.student
        if variant in OF_TOWERS:
            self.digest += f"-{variant}"

    def check(self, pair: bool, rows: int | None, characters: int) -> None:
        """Run each graph on a short text and on the longest; raise ModelError if one fails or gives another shape.

        :param pair: whether the task has pairs
        :param rows: size of the table that features are hashed to, whose last row is looked up; None: not hashed
        :param characters: length of the longest text; of ideographs, as each is a token
        """
        key = "input_ids" if self.width is None else "text_ids"
        for text in ("a", "\u4e00" * min(characters, _LONGEST_CHECKED)):
            fields = dict(self._encode([text], [text] if pair else None))
            if rows is not None:
                fields[key] = np.full_like(fields[key], rows - 1)
            if self.width is None:
                self._graphs[CLASSIFIER].run(fields)
                continue
            vectors = self._graphs[VECTORS].run({"ids": fields[key]})
            self._head(text=vectors, **({"pair": vectors} if pair else {}))

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        """See ``Scoring``. With towers, a text that occurs again is embedded once."""
        if self.width is None:
            return self._by_chunks(self._graphs[CLASSIFIER], texts, pairs)
        vectors = self._vectors_of_distinct(texts)
        return self._head(text=vectors) if pairs is None else self.compared(vectors, self._vectors_of_distinct(pairs))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """See ``Scoring``."""
        return self._by_chunks(self._graphs[VECTORS], texts, None)

    def compared(self, vectors: Vectors, pair_vectors: Vectors) -> Probabilities:
        """See ``Scoring``."""
        return self._head(text=vectors, pair=pair_vectors)

    def _vectors_of_distinct(self, texts: Sequence[str]) -> Vectors:
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return self.vectors(list(places))[[places[text] for text in texts]]

    def _head(self, **vectors: Vectors) -> Probabilities:
        graph, count = self._graphs[HEAD], len(vectors["text"])
        found = np.empty((count, graph.width), dtype=np.float32)
        for start in range(0, count, _CHUNK):
            rows = slice(start, min(start + _CHUNK, count))
            found[rows] = graph.run({name: np.ascontiguousarray(values[rows]) for name, values in vectors.items()})
        return found

    def _by_chunks(self, graph: "OnnxGraph", texts: Sequence[str], pairs: Sequence[str] | None) -> Probabilities:
        found = np.empty((len(texts), graph.width), dtype=np.float32)
        for start in range(0, len(texts), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(texts)))
            fields = self._encode(texts[rows], None if pairs is None else pairs[rows])
            if graph.name == VECTORS:
                fields = {"ids": fields["text_ids"]}
            found[rows] = _by_batches(graph.run, fields, graph.width)
        return found


class OnnxGraph:
    """One graph in an onnxruntime session. name: name of its file. width: number of columns of its output."""

    def __init__(self, name: GraphName, content: bytes, width: int, folder: Path, threads: int) -> None:
        """folder: folder of its files, the only one from which it may read. threads: of one run.

        :raises ModelError: onnxruntime cannot load it
        """
        self.name, self.width = name, width
        self._path = folder / name
        try:
            self._session = _session(content, folder, threads)
        except ConfigError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            raise ModelError(f"{self._path} cannot be loaded by onnxruntime: {_first_line(error)}") from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the output, float32 ``[n, width]``; raise ModelError if the graph fails or gives another shape."""
        count = len(next(iter(inputs.values())))
        try:
            output: npt.NDArray[np.float32] = self._session.run(None, dict(inputs))[0]
        except Exception as error:  # onnxruntime's errors have no common base
            raise ModelError(f"{self._path} does not fit student.json: {_first_line(error)}") from error
        if output.shape != (count, self.width) or output.dtype != np.float32:
            raise ModelError(
                f"{self._path} gives {output.dtype} {output.shape} instead of float32 {(count, self.width)}: it is not "
                "of this student; export it again"
            )
        return output


def load_exported(path: Path | str, variant: str = "float32", threads: int = 1) -> ExportedStudent:
    """Load a student that ``fed-distill export`` wrote. Nothing in the folder is run but its ONNX graphs.

    :param path: folder with ``export.json``
    :param variant: ``float32``, ``float16``, ``int8``, ``int4`` or ``pruned``, if it was exported
    :param threads: threads of onnxruntime for one call
    :raises ConfigError: onnxruntime is not installed, or there is no such variant
    :raises ModelError: a file is missing, damaged, or not of this student
    """
    folder = Path(path)
    description = ExportDescription.read(folder)
    chosen = next((name for name in description.variants if name == variant), None)
    if chosen is None:
        raise ConfigError(f"{folder} has no variant {variant!r}; it has: {', '.join(description.variants)}")
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}")
    check_inside(folder)
    student = StudentDescription.read(folder)
    classes = len(student.task.classes)
    graphs: dict[str, OnnxGraph] = {
        name: OnnxGraph(
            name,
            description.graph(folder, chosen, name),
            description.width if name == VECTORS and description.width else classes,
            folder / variant,
            threads,
        )
        for name in description.graphs
    }
    encoding = read_encoding(folder)
    scoring = OnnxScoring(graphs, encoder_of(encoding, folder), description, chosen)
    rows = None if encoding["algorithm"] == TOKENIZER else encoding["rows"]
    scoring.check(student.task.pair, rows, student.max_characters)
    return ExportedStudent(scoring, student, description, chosen)


def _session(content: bytes, folder: Path, threads: int) -> "InferenceSession":
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "an exported student requires the package onnxruntime: pip install 'fed-distill[serve]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised, not printed too
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _by_batches(
    compute: Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[np.float32]], fields: Fields, width: int
) -> npt.NDArray[np.float32]:
    """Return the rows of ``compute`` in the order of ``fields``, in batches of similar length to reduce padding."""
    lengths = np.sum([(values != 0).sum(axis=1) for values in fields.values()], axis=0)
    order = np.argsort(lengths, kind="stable")
    found = np.empty((len(order), width), dtype=np.float32)
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        found[rows] = compute({name: _trimmed(values[rows]) for name, values in fields.items()})
    return found


def _trimmed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Remove trailing columns that are padding in all rows, except the first column."""
    used = np.flatnonzero(values.any(axis=0))
    return np.ascontiguousarray(values[:, : int(used[-1]) + 1 if len(used) else 1])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
