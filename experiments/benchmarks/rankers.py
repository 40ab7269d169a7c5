"""Models of several libraries behind one interface that ranks titles for a query; none is imported before it is used.

A model either scores two texts together, or gives each text a vector, so that those of a catalogue can be stored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from fed_distill.serving.scorer import Scorer

Scores = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
Kind = Literal["student", "exported", "model2vec", "sentence-transformers", "onnx"]

ENCODER, TOKENIZER = "encoder.onnx", "tokenizer.json"
_WEIGHTS = (".safetensors", ".onnx", TOKENIZER)
_BATCH = 32
"""Texts in one pass of a sentence encoder: the default of sentence-transformers."""


class Ranker(Protocol):
    """Scores titles for queries; the higher the better. has_vectors: whether ``embed`` and ``compare`` can be used."""

    has_vectors: bool

    def scores(self, queries: Sequence[str], titles: Sequence[str]) -> Scores:
        """Return the score of each title for its query, float64 ``[n]``."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vector of each text, float32 ``[n, width]``."""

    def compare(self, query: Vectors, titles: Vectors) -> Scores:
        """Return the score of each title for one query by their vectors ``[width]`` and ``[n, width]``."""


class ByGain:
    """Ranks by the expected gain of a classifier of pairs."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.has_vectors = scorer, scorer.has_vectors

    def scores(self, queries: Sequence[str], titles: Sequence[str]) -> Scores:
        """See ``Ranker``."""
        found: Scores = self._scorer.predict(queries, titles).astype(np.float64) @ self._scorer.gains
        return found

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See ``Ranker``."""
        return self._scorer.embed(texts)

    def compare(self, query: Vectors, titles: Vectors) -> Scores:
        """See ``Ranker``."""
        return self._scorer.score_vectors(query, titles)


class ByCosine:
    """Ranks by the cosine of two texts' vectors. A text is embedded once."""

    has_vectors = True

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def scores(self, queries: Sequence[str], titles: Sequence[str]) -> Scores:
        """See ``Ranker``."""
        places = {text: place for place, text in enumerate(dict.fromkeys([*queries, *titles]))}
        vectors = self.embed(list(places)).astype(np.float64)
        left, right = ([places[text] for text in texts] for texts in (queries, titles))
        cosines: Scores = np.einsum("nw,nw->n", vectors[left], vectors[right])
        return cosines

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See ``Ranker``; vectors have length 1, or 0 for a text without a known token."""
        vectors = self._encode(texts).astype(np.float32, copy=False)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return unit

    def compare(self, query: Vectors, titles: Vectors) -> Scores:
        """See ``Ranker``."""
        return np.asarray(titles @ query, dtype=np.float64)


@dataclass(frozen=True)
class Model:
    """A model on disk, as a row of the table.

    name: of the row. trained_on: what its weights have seen of the run's data. path: its folder. variant: of an export.
    """

    name: str
    trained_on: str
    kind: Kind
    path: str
    variant: str | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """Return the model that ``described`` gave."""
        return cls(**content)

    def described(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        return asdict(self)

    @property
    def files(self) -> list[Path]:
        """The weights, or the graphs of the variant, and ``tokenizer.json`` if there is one."""
        folder = Path(self.path)
        files = [one for one in folder.iterdir() if one.is_file()]
        if self.variant is not None:
            files = [*(one for one in files if one.name == TOKENIZER), *(folder / self.variant).iterdir()]
        return [one for one in files if one.name.endswith(_WEIGHTS)]

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(one.stat().st_size for one in self.files)

    def ranker(self) -> Ranker:
        """Load the model, to be computed by one thread."""
        if self.kind == "student":
            from fed_distill.serving.student import load_student

            return ByGain(load_student(self.path))
        if self.kind == "exported":
            from fed_distill.serving.runtime import load_exported

            return ByGain(load_exported(self.path, self.variant or "float32", threads=1))
        if self.kind == "model2vec":
            return ByCosine(_model2vec(self.path))
        if self.kind == "sentence-transformers":
            return ByCosine(_sentence_transformer(self.path))
        return ByCosine(onnx_encoder(Path(self.path)))


def _model2vec(path: str) -> Encode:
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(path, force_download=False)

    def encode(texts: Sequence[str]) -> Vectors:
        found: Vectors = model.encode(list(texts), use_multiprocessing=False)
        return found

    return encode


def _sentence_transformer(path: str) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu", local_files_only=True)

    def encode(texts: Sequence[str]) -> Vectors:
        found: Vectors = model.encode(list(texts), batch_size=_BATCH, show_progress_bar=False)
        return found

    return encode


def onnx_encoder(folder: Path) -> Encode:
    """Load the ``encoder.onnx`` of ``ranking_encoders.export_encoder``: texts to vectors, in batches of similar
    length."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / ENCODER, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    def encode(texts: Sequence[str]) -> Vectors:
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = []
        for start in range(0, len(order), _BATCH):
            encodings = tokenizer.encode_batch([texts[row] for row in order[start : start + _BATCH]])
            fields = {
                "input_ids": np.array([one.ids for one in encodings], dtype=np.int64),
                "attention_mask": np.array([one.attention_mask for one in encodings], dtype=np.int64),
            }
            parts.append(session.run(None, fields)[0])
        found = np.concatenate(parts)
        vectors: Vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    return encode
