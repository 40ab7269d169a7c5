"""Export a trained student to ONNX in several variants, measured beside each other so that a person can choose.

An export is checked before it is kept: its float32 variant equals the trained student to ``conformance.TOLERANCE``.
"""

import hashlib
import importlib.util
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.examples import FederatedData, Task
from fed_distill.data.student_description import DESCRIPTION, StudentDescription
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.base import TextModel
from fed_distill.models.lstm import LSTM
from fed_distill.models.towers import Towers
from fed_distill.models.transformer import Transformer
from fed_distill.reporting.store import EXPERIMENT
from fed_distill.serving.conformance import TOLERANCE, conformance
from fed_distill.serving.exported_folder import (
    CLASSIFIER,
    CONFORMANCE,
    EXPORT,
    EXPORT_FORMAT,
    HEAD,
    MOST_DIFFERENCE,
    OF_TOWERS,
    PRUNED,
    REFERENCE,
    VARIANTS,
    VECTORS,
    WEB,
    ExportDescription,
    Graph,
    GraphFile,
    GraphName,
    Measured,
    TensorType,
    TrainedStudent,
    Variant,
    VariantName,
)
from fed_distill.serving.measuring import latencies, one_thread, percentiles, quality_on_test
from fed_distill.serving.reference_data import build_reference
from fed_distill.serving.runtime import load_exported
from fed_distill.serving.scorer import Probabilities, Scorer
from fed_distill.serving.student import Student, check_new_folder, load_student, student_folder
from fed_distill.serving.web_export import check_web, write_web
from fed_distill.storage.files import make_folder, replace_folder, strict_json
from fed_distill.storage.versions import versions
from fed_distill.text.encoders import TOKENIZER, encoder_of, unknown_token

if TYPE_CHECKING:
    from onnx import ModelProto

_REQUIRED = ("onnx", "onnxruntime", "onnxscript")
_CARD, _WEIGHTS = "README.md", "model.safetensors"


def export_student(
    run: Path, to: Path, variants: Sequence[str] | None = None, quality: bool = True, web: str | None = None
) -> ExportDescription:
    """Write the student of ``run`` to the new folder ``to``, atomically, and measure each variant.

    :param run: folder of a run, or of a student if ``quality`` is False
    :param variants: names of variants; None for all that the student has
    :param quality: whether to measure the headline metric on the run's test data, and to write the reference of its
        texts and scores (``reference.json``)
    :param web: variant of the folder ``web``, which JavaScript reads (``web_export``); None for no such folder
    :raises ConfigError: packages are missing, ``to`` is not empty or in the student's folder, a variant is unknown, or
        the run has no experiment
    :raises ModelError: the student cannot be loaded or exported, its float32 variant is not equal to it, or another
        one is farther from it than its storage explains
    :raises DataError: the run's data cannot be loaded
    """
    _check_packages()
    folder = student_folder(run)
    check_new_folder(to, folder)
    student, description = load_student(folder), StudentDescription.read(folder)
    names = _chosen(student.model, variants)
    web_variant = None if web is None else check_web(student, web)
    encoder_of(student.model.text_encoding, folder)
    data = _data_of(folder, run) if quality else None
    found: list[ExportDescription] = []

    def fill(target: Path) -> None:
        for name in (DESCRIPTION, _CARD, TOKENIZER):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        expected = conformance(student, description)
        written = _write_variants(target, student, names)
        _write(target, written)
        _check_equal(target, expected)
        if PRUNED in written.variants:
            _add_pruned(expected, load_exported(target, PRUNED))
        (target / CONFORMANCE).write_text(strict_json(expected, CONFORMANCE, indent=1) + "\n", encoding="utf-8")
        if web_variant is not None:
            write_web(target / WEB, student, folder, web_variant)
        weights = (folder / _WEIGHTS).stat().st_size
        longest = description.max_characters
        measured = {name: _measured(load_exported(target, name), longest, expected, data) for name in written.variants}
        with one_thread():
            trained = TrainedStudent(bytes=weights, measured=_measured(student, longest, expected, data))
        _check_close(measured)
        complete = {
            name: variant.model_copy(update={"measured": measured[name]}) for name, variant in written.variants.items()
        }
        reference = None if data is None else _write_reference(target, student, data, written.variants)
        found.append(written.model_copy(update={"variants": complete, "trained": trained, "reference": reference}))
        _write(target, found[0])

    make_folder(to.parent)
    replace_folder(to, fill)
    return found[0]


def _check_packages() -> None:
    missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"an export requires the package{'s' * (len(missing) > 1)} {', '.join(missing)}: "
            "pip install 'fed-distill[serve]'"
        )


def _chosen(model: TextModel, variants: Sequence[str] | None) -> list[VariantName]:
    """Return the variants to write, float32 first; raise ConfigError for one that the student does not have."""
    if not isinstance(model, Towers | LSTM | Transformer):
        raise ModelError(
            f"a student {model.kind!r} cannot be exported: only two-tower, static, lstm and the BERT family can"
        )
    known: list[VariantName] = [name for name in VARIANTS if name not in OF_TOWERS or isinstance(model, Towers)]
    unknown = sorted(set(variants or ()) - set(known))
    if unknown:
        raise ConfigError(f"a student {model.kind!r} has no variant {unknown[0]!r}; it has: {', '.join(known)}")
    return [name for name in known if variants is None or name in variants or name == "float32"]


def _data_of(folder: Path, run: Path) -> FederatedData:
    for place in (run, folder.parent):
        if (place / EXPERIMENT).is_file():
            return load(Experiment.read(place / EXPERIMENT).data)
    raise ConfigError(f"{run} has no {EXPERIMENT} to measure quality with: pass the run's folder, or --no-quality")


def _graphs(
    model: TextModel, task: Task, names: Sequence[VariantName]
) -> Iterator[tuple[VariantName, dict[GraphName, "ModelProto"]]]:
    """Yield each variant's name and graphs."""
    if isinstance(model, Towers):
        from fed_distill.serving.tower_graphs import head_graph, vectors_graph

        for name in names:
            yield name, {VECTORS: vectors_graph(model, name), HEAD: head_graph(model, task.pair, name)}
    else:
        from fed_distill.serving.classifier_graphs import classifier_graph, float16_storage, int8_quantized

        whole = classifier_graph(model, task.pair)
        for name in names:
            changed = {"float16": float16_storage, "int8": int8_quantized}.get(name)
            yield name, {CLASSIFIER: whole if changed is None else changed(whole)}


def _write_variants(target: Path, student: Student, names: Sequence[VariantName]) -> ExportDescription:
    """Write the graphs of each variant, and return their description without measurements."""
    model = student.model
    variants: dict[VariantName, Variant] = {}
    graphs: dict[GraphName, Graph] = {}
    for name, protos in _graphs(model, student.task, names):
        (target / name).mkdir()
        files: dict[GraphName, GraphFile] = {}
        for file, proto in protos.items():
            content = proto.SerializeToString(deterministic=True)
            (target / name / file).write_bytes(content)
            files[file] = GraphFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            graphs.setdefault(file, _described(proto))
        variants[name] = Variant(files=files, settings=_settings(model, name))
    return ExportDescription(
        format=EXPORT_FORMAT,
        student=student.digest,
        kind=model.kind,
        width=model.width if isinstance(model, Towers) else None,
        graphs=graphs,
        metric=student.task.headline,
        variants=variants,
        versions={**versions(), **{name: version(name) for name in _REQUIRED}},
    )


def _write_reference(target: Path, student: Student, data: FederatedData, names: Iterable[VariantName]) -> GraphFile:
    """Write ``reference.json`` and return its size and hash."""
    encoding = student.model.text_encoding
    scorers = {name: load_exported(target, name) for name in names}
    found = build_reference(data, encoder_of(encoding, target), unknown_token(encoding, target), scorers)
    content = (strict_json(found.model_dump(mode="json"), REFERENCE, indent=1) + "\n").encode()
    (target / REFERENCE).write_bytes(content)
    return GraphFile(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _settings(model: TextModel, name: VariantName) -> dict[str, Any]:
    """Return how a variant was made, for people."""
    if isinstance(model, Towers):
        from fed_distill.serving.tower_graphs import BLOCK, PRUNED_SHARE

        int8 = f"int8 with one float16 scale for {BLOCK} rows"
        table = {"int8": int8, "pruned": int8, "int4": "int4 with one float16 scale a row"}.get(name, name)
        made: dict[str, Any] = {"table": table, "head": "float32" if name == "float32" else "float16"}
        return {**made, "removed_share": PRUNED_SHARE} if name == "pruned" else made
    if name == "int8":
        return {"weights": "int8", "activations": "quantized by batch"}
    return {"weights": name}


def _described(proto: "ModelProto") -> Graph:
    """Return the inputs and outputs of a graph."""
    from onnx import TensorProto

    def tensors(values: Any) -> dict[str, TensorType]:
        return {
            value.name: TensorType(
                type=TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
                shape=[one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    return Graph(inputs=tensors(proto.graph.input), outputs=tensors(proto.graph.output))


def _write(target: Path, description: ExportDescription) -> None:
    text = strict_json(description.model_dump(mode="json"), EXPORT, indent=1)
    (target / EXPORT).write_text(text + "\n", encoding="utf-8")


def _probabilities(scorer: Scorer, expected: Mapping[str, Any]) -> Probabilities:
    """Return what a student gives for the texts of ``conformance.json``."""
    examples = expected["examples"]
    pairs = [one["pair"] for one in examples] if scorer.task.pair else None
    return scorer.predict([one["text"] for one in examples], pairs)


def _add_pruned(expected: Mapping[str, Any], scorer: Scorer) -> None:
    """Add the probabilities of ``pruned`` to the examples, as no bound says how far they are from the student's."""
    for one, found in zip(expected["examples"], _probabilities(scorer, expected), strict=True):
        one[PRUNED] = found.tolist()


def _difference(scorer: Scorer, expected: Mapping[str, Any]) -> float:
    """Return the largest absolute difference of a probability to those of ``conformance.json``."""
    right = np.array([one["probabilities"] for one in expected["examples"]])
    return float(np.abs(_probabilities(scorer, expected) - right).max())


def _check_equal(target: Path, expected: Mapping[str, Any]) -> None:
    exported = load_exported(target)
    apart = {"probability": _difference(exported, expected)}
    if exported.has_vectors:
        vectors = exported.embed([one["text"] for one in expected["examples"]])
        apart["vector"] = float(np.abs(vectors - np.array([one["vector"] for one in expected["examples"]])).max())
    for name, value in apart.items():
        if not value <= TOLERANCE:
            raise ModelError(
                f"the exported float32 graph differs from the trained student by {value:.2g} in a {name}, more than "
                f"{TOLERANCE:g}: nothing was written; install the versions of torch, onnx and onnxruntime that "
                "fed-distill was tested with"
            )


def _check_close(measured: Mapping[VariantName, Measured]) -> None:
    """Raise ModelError for a variant that no service would load; see ``MOST_DIFFERENCE``."""
    for name, one in measured.items():
        if not one.difference <= MOST_DIFFERENCE[name]:
            raise ModelError(
                f"variant {name} differs from the trained student by {one.difference:.2g} in a probability, more than "
                f"{MOST_DIFFERENCE[name]:g}: nothing was written; leave it out with --variants"
            )


def _measured(scorer: Scorer, longest: int, expected: Mapping[str, Any], data: FederatedData | None) -> Measured:
    middle, high = percentiles(latencies(scorer, longest))
    quality = None if data is None else quality_on_test(scorer, data)
    return Measured(p50_ms=middle, p99_ms=high, difference=_difference(scorer, expected), quality=quality)
