"""``export.json`` and the files of an exported student, read with distrust. ``docs/how-to/student.md`` has the format.

A folder names no file to open: the names of graphs are fixed, and a link that leads out of the folder is refused.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from fed_distill.data.student_description import DESCRIPTION
from fed_distill.errors import ModelError
from fed_distill.storage.files import leads_out

EXPORT = "export.json"
CONFORMANCE = "conformance.json"
REFERENCE = "reference.json"
EXPORT_FORMAT = 1
"""Version of ``export.json``. Increase it with any change by which an earlier program would misread an export."""

WEB = "web"
"""Folder of an export for JavaScript; ``web_export`` writes it."""
WEB_WEIGHTS = "weights.bin"
WEB_FILES = (DESCRIPTION, WEB_WEIGHTS)

GraphName = Literal["vectors.onnx", "head.onnx", "classifier.onnx"]
VECTORS: GraphName = "vectors.onnx"
HEAD: GraphName = "head.onnx"
CLASSIFIER: GraphName = "classifier.onnx"
VariantName = Literal["float32", "float16", "int8", "int4", "pruned"]
VARIANTS: tuple[VariantName, ...] = get_args(VariantName)
PRUNED: VariantName = "pruned"
OF_TOWERS: tuple[VariantName, ...] = ("int4", PRUNED)
"""Variants that only students with towers have. Their vectors differ from the trained student's by so much that an
index of its vectors is not of theirs."""
MOST_DIFFERENCE: Mapping[VariantName, float] = {
    "float32": 1e-5,
    "float16": 0.01,
    "int8": 0.15,
    "int4": 0.4,
    "pruned": 1.0,
}
"""Largest difference of a class probability to the trained student's that the storage of a variant explains.

A stored weight is off by at most 2^-11 of itself (float16), 1/254 (int8) or 1/14 (int4) of the largest weight that
shares its scale. A softmax differs by at most half the largest error of a logit, to which a weight's error adds up over
rows and layers: no bound below 1 holds for every student, so these are ten times and, for int4, three times what
trained students show (docs/how-to/student.md), and a graph of another student exceeds them. Without a row that
``pruned`` removes, a text of few features is another text, whose probabilities may be any: that variant is compared
with its own probabilities, which ``conformance.json`` has.
"""
_MOST_JSON = 1 << 26
"""Largest JSON file that is read, bytes; the texts of a tokenizer have a few million."""
_MOST_GRAPH = (1 << 31) - 1
"""Largest graph, bytes: protobuf, and thus ONNX, has no larger messages."""
_WIDEST = 1 << 16
"""Largest width of a text's vector."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GraphFile(_Strict):
    """Size and SHA-256 of a file, by which damage is found. They do not say who wrote it."""

    bytes: Annotated[int, Field(ge=1, le=_MOST_GRAPH)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Measured(_Strict):
    """What a variant costs and gives, measured when it was written.

    p50_ms, p99_ms: time on one core to rank 100 titles for a query, encoding included. difference: largest absolute
    difference of a class probability to the trained student's, over the texts of ``conformance.json``. quality:
    headline metric on the run's test data; None if it was not measured.
    """

    p50_ms: float
    p99_ms: float
    difference: float
    quality: float | None = None


class TrainedStudent(_Strict):
    """The trained student, to compare with: bytes of its weights, and the same measurements with torch."""

    bytes: PositiveInt
    measured: Measured


class Variant(_Strict):
    """One variant: its graphs, how they were made, and what was measured (None while it is written)."""

    files: dict[GraphName, GraphFile]
    settings: dict[str, Any]
    measured: Measured | None = None

    @property
    def size(self) -> int:
        """Bytes of all graphs."""
        return sum(file.bytes for file in self.files.values())


class TensorType(_Strict):
    """Element type and shape of an input or output; a name is a dimension of any size."""

    type: str
    shape: list[NonNegativeInt | str]


class Graph(_Strict):
    """Inputs and outputs of a graph by name; they are alike in all variants."""

    inputs: dict[str, TensorType]
    outputs: dict[str, TensorType]


class ExportDescription(_Strict):
    """Content of ``export.json``.

    student: digest of the trained student. kind: its name. width: width of a text's vector; None without towers.
    metric: name of the headline metric in ``quality``. trained: the student before the export (None while it is
    written). reference: ``reference.json``; None if the export has none.
    """

    format: Literal[1]
    student: str
    kind: str
    width: Annotated[int, Field(ge=1, le=_WIDEST)] | None
    graphs: dict[GraphName, Graph]
    metric: str
    trained: TrainedStudent | None = None
    reference: GraphFile | None = None
    variants: dict[VariantName, Variant]
    versions: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``export.json``; raise ModelError if it is missing, damaged, or of another format."""
        try:
            found = cls.model_validate_json(read_inside(folder, EXPORT, _MOST_JSON))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "content"
            raise ModelError(
                f"{folder / EXPORT} is not an export's description of format {EXPORT_FORMAT}: {where}: {first['msg']}; "
                "export the student again with fed-distill export"
            ) from error
        wanted = {CLASSIFIER} if found.width is None else {VECTORS, HEAD}
        named: dict[str, set[GraphName]] = {"graphs": set(found.graphs)}
        named.update((name, set(one.files)) for name, one in found.variants.items())
        for name, files in named.items():
            if files != wanted:
                raise ModelError(f"{folder / EXPORT}: {name} has {sorted(files)}, and must have {sorted(wanted)}")
        for name, one in found.variants.items():
            if one.measured is not None and not 0.0 <= one.measured.difference <= MOST_DIFFERENCE[name]:
                raise ModelError(
                    f"{folder / EXPORT}: variants.{name}.measured.difference is {one.measured.difference:g}, and the "
                    f"storage of {name} explains at most {MOST_DIFFERENCE[name]:g}: export the student again"
                )
        return found

    def graph(self, folder: Path, variant: VariantName, name: GraphName) -> bytes:
        """Read a graph; raise ModelError if it is missing, outside of ``folder``, or not as it was written."""
        expected = self.variants[variant].files[name]
        content = read_inside(folder, f"{variant}/{name}", expected.bytes)
        if len(content) != expected.bytes or hashlib.sha256(content).hexdigest() != expected.sha256:
            raise ModelError(f"{folder / variant / name} is damaged: copy it again, or export the student again")
        return content


def read_inside(folder: Path, name: str, most: int) -> bytes:
    """Return the content of the file ``name`` of ``folder``, of at most ``most`` bytes.

    :raises ModelError: it is missing, larger, no regular file, or a link that leads out of the folder
    """
    path = folder / name
    if leads_out(path, folder):
        raise ModelError(f"{path} leads out of the folder of the export: copy the file itself")
    if path.exists() and not path.is_file():
        raise ModelError(f"{path} is not a regular file: export the student again")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # a read allocates all that it is asked for
            content = file.read(size) if size <= most else None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; export the student again") from error
    if content is None:
        raise ModelError(f"{path} has more than the {most:,} bytes expected: export the student again")
    return content


def check_inside(folder: Path, names: tuple[str, ...] = (DESCRIPTION, "tokenizer.json")) -> None:
    """Raise ModelError if one of the student's own files is too large or leads out of ``folder``."""
    for name in names:
        if (folder / name).exists():
            read_inside(folder, name, _MOST_JSON)
