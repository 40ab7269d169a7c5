"""An export equals the trained student, runs without torch, and is written whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fed_distill import load_student, seeds
from fed_distill.data import load
from fed_distill.data.student_description import StudentDescription
from fed_distill.errors import ConfigError, DataError, ModelError
from fed_distill.evaluation.metrics import expected_gains, ranking
from fed_distill.models import TextModel, build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving import export as exporting
from fed_distill.serving.export import export_student
from fed_distill.serving.exported_folder import VARIANTS
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import load_index, save_index
from fed_distill.serving.runtime import load_exported

ALL = ("two-tower", "two-tower, one text", "static", "lstm", "lstm, one text", "bert-mini")
TOWERS = ("two-tower", "two-tower, one text", "static")
TEXTS = ("red phone pro", "blue shoe", "green kettle maxi " * 10, "手机 mini", "kühl ultra pro", "!!!", "x")
CLOSE = {"float32": 1e-5, "float16": 2e-3, "int8": 3e-2}
"""Largest difference of a probability. float16 keeps 11 bits of a weight (2^-11 = 5e-4), int8 seven; errors of many
rows or products average out, and a softmax has a slope of at most 1/4."""


def pairs_of(student):
    return TEXTS[::-1] if student.task.pair else None


@pytest.mark.parametrize("variant", CLOSE)
@pytest.mark.parametrize("kind", ALL)
def test_each_variant_is_close_to_the_trained_student(kind, variant, exported):
    folder, export = exported(kind)
    student, found = load_student(folder), load_exported(export, variant)
    assert (found.task, found.classes, found.has_vectors) == (student.task, student.classes, kind in TOWERS)
    expected = student.predict(TEXTS, pairs_of(student))
    probabilities = found.predict(TEXTS, pairs_of(student))
    assert probabilities.dtype == np.float32 and probabilities.std() > 1e-3
    np.testing.assert_allclose(probabilities, expected, atol=CLOSE[variant])
    if student.task.pair:
        ranked, right = found.rank(TEXTS[0], TEXTS), student.rank(TEXTS[0], TEXTS)
        np.testing.assert_allclose(ranked.scores, right.scores, atol=2 * CLOSE[variant])
    assert found.predict([], [] if student.task.pair else None).shape == (0, len(student.classes))


def test_an_index_of_the_trained_student_serves_its_exports_but_not_the_coarse_ones(exported, tmp_path):
    """Rows rounded to eight bits hardly turn a vector; rows of four bits, and a row that is missing, do."""
    folder, export = exported("two-tower")
    student = load_student(folder)
    assert {load_exported(export, name).digest for name in CLOSE} == {student.digest}
    index = ProductIndex.build(load_exported(export, "int8"), [Product(str(n), text) for n, text in enumerate(TEXTS)])
    save_index(index, tmp_path / "index", student.digest)
    found = load_index(tmp_path / "index", load_exported(export), load_exported(export).digest)
    assert [hit.id for hit in found.search(TEXTS[0], 1)] == [hit.id for hit in index.search(TEXTS[0], 1)]
    for name in ("pruned", "int4"):
        other = load_exported(export, name)
        with pytest.raises(DataError, match="of another student"):
            load_index(tmp_path / "index", other, other.digest)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_pruned_student_is_the_trained_one_without_its_rows_of_small_norm(kind, exported):
    folder, export = exported(kind)
    student, found = load_student(folder), load_exported(export, "pruned")
    bag = student.model.bag
    with torch.no_grad():
        norms = (bag.table * bag.importance.exp()).norm(dim=1)[1:]
        fewest = sorted(range(len(norms)), key=lambda row: norms[row])[: int(0.25 * len(norms))]
        bag.table[1 + torch.tensor(fewest)] = 0.0
    expected = student.predict(TEXTS, pairs_of(student))
    np.testing.assert_allclose(found.predict(TEXTS, pairs_of(student)), expected, atol=CLOSE["int8"])


def rounded(values, steps):
    """The closest products of whole numbers up to ``steps`` and one float16 scale."""
    scale = float(np.float16(np.abs(values).max() / steps))
    return np.clip(np.rint(values / scale), -steps, steps) * scale if scale else np.zeros_like(values)


@pytest.mark.parametrize(("variant", "steps", "block"), [("int8", 127, 8), ("int4", 7, 1)])
@pytest.mark.parametrize("kind", TOWERS)
def test_a_quantized_student_is_the_trained_one_with_rounded_rows_and_a_head_of_float16(
    kind, variant, steps, block, exported
):
    folder, export = exported(kind)
    student = load_student(folder)
    bag = student.model.bag
    with torch.no_grad():
        table = (bag.table * bag.importance.exp()).numpy()
        table[0] = 0.0
        for start in range(0, len(table), block):
            bag.table[start : start + block] = torch.from_numpy(rounded(table[start : start + block], steps))
        bag.importance.zero_()
        for weight in student.model.head.parameters():
            weight.copy_(weight.half())
    found = load_exported(export, variant)
    np.testing.assert_allclose(found.embed(TEXTS), student.embed(TEXTS), atol=1e-5)
    expected = student.predict(TEXTS, pairs_of(student))
    np.testing.assert_allclose(found.predict(TEXTS, pairs_of(student)), expected, atol=1e-5)


def test_four_bits_of_an_odd_width(tmp_path, task):
    with seeds.scope(0, "odd width"):
        model = build_student("two-tower", {"rows": 512, "width": 7, "head_width": 8}, task)
    save_student(tmp_path / "student", model, StudentDescription(task, 300))
    export_student(tmp_path / "student", tmp_path / "export", ["int4"], quality=False)
    vectors = load_exported(tmp_path / "export", "int4").embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 7)
    np.testing.assert_allclose(vectors, load_student(tmp_path).embed(TEXTS), atol=0.3)


@pytest.mark.parametrize("kind", TOWERS)
def test_vectors_equal_those_of_torch_and_rank_as_texts_do(kind, exported):
    folder, export = exported(kind)
    student, found = load_student(folder), load_exported(export)
    np.testing.assert_allclose(found.embed(TEXTS), student.embed(TEXTS), atol=1e-6)
    assert not found.embed(["!!!"])[0].any() or kind == "static"
    if student.task.pair:
        vectors = found.embed(TEXTS)
        for one in (found, student):
            np.testing.assert_allclose(
                one.score_vectors(vectors[0], vectors), student.rank(TEXTS[0], TEXTS).scores, atol=1e-6
            )


@pytest.mark.parametrize("kind", ALL)
def test_results_do_not_depend_on_batches(kind, exported, monkeypatch):
    found = load_exported(exported(kind)[1])
    texts = [f"{text} {number}" for number in range(5) for text in TEXTS]
    pairs = texts[::-1] if found.task.pair else None
    whole = found.predict(texts, pairs)
    monkeypatch.setattr("fed_distill.serving.runtime._CHUNK", 7)
    monkeypatch.setattr("fed_distill.serving.runtime._BATCH", 3)
    np.testing.assert_allclose(found.predict(texts, pairs), whole, atol=1e-6)


@pytest.mark.parametrize("kind", ["two-tower", "static", "lstm"])
def test_scoring_imports_neither_torch_nor_onnx(kind, exported):
    code = """
import json, sys
for name in ("torch", "transformers", "onnx"):
    sys.modules[name] = None  # an import of it raises ImportError
from fed_distill import load_exported
from fed_distill.serving.index import Product, ProductIndex
from fed_distill.serving.index_files import load_index, save_index
student = load_exported(sys.argv[1], "int8")
scores = student.rank("red phone", ["blue shoe", "red phone pro"]).scores
heavy = [name for name in ("torch", "transformers", "flwr", "onnx", "pandas", "sklearn") if sys.modules.get(name)]
print(json.dumps([scores.tolist(), heavy]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported(kind)[1])],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    scores, heavy = json.loads(done.stdout)
    assert len(scores) == 2 and heavy == []


@pytest.mark.parametrize("kind", ALL)
def test_conformance_says_what_another_program_must_give(kind, exported):
    folder, export = exported(kind)
    student = load_student(folder)
    content = json.loads((export / "conformance.json").read_text(encoding="utf-8"))
    assert len(content["examples"]) >= 20 and content["tolerance"] == 1e-5
    for one in content["examples"]:
        pair = [one["cleaned_pair"]] if student.task.pair else None
        encoded = student.model.encode([one["cleaned"]], pair)
        assert {name: values[0].tolist() for name, values in encoded.items()} == one["encoded"]
        np.testing.assert_allclose(student.predict([one["cleaned"]], pair)[0], one["probabilities"], atol=1e-6)
        if "vector" in one:
            np.testing.assert_allclose(student.embed([one["text"]])[0], one["vector"], atol=1e-6)
    assert ("vector" in one) == (kind in TOWERS)


def test_the_description_says_what_was_written(exported):
    folder, export = exported("two-tower")
    content = json.loads((export / "export.json").read_text(encoding="utf-8"))
    assert list(content["variants"]) == list(VARIANTS)
    for name, variant in content["variants"].items():
        for file, one in variant["files"].items():
            assert (export / name / file).stat().st_size == one["bytes"]
        assert 0 < variant["measured"]["p50_ms"] <= variant["measured"]["p99_ms"]
    assert content["graphs"]["vectors.onnx"] == {
        "inputs": {"ids": {"type": "int32", "shape": ["n", "features"]}},
        "outputs": {"vectors": {"type": "float", "shape": ["n", 8]}},
    }
    assert content["variants"]["float32"]["measured"]["difference"] <= 1e-5
    assert content["trained"]["bytes"] == (folder / "model.safetensors").stat().st_size
    assert (export / "student.json").read_bytes() == (folder / "student.json").read_bytes()


def test_quality_is_that_of_the_run(tiny_run, tmp_path):
    run, task = tiny_run.result.folder, load(tiny_run.experiment.data)
    found = export_student(run, tmp_path / "export", ["int8"])
    assert list(found.variants) == ["float32", "int8"]
    right = tiny_run.result.summary["student"]["ndcg@10"]
    assert found.metric == "ndcg@10"
    assert found.trained.measured.quality == pytest.approx(right, abs=1e-6)
    assert found.variants["float32"].measured.quality == pytest.approx(right, abs=1e-6)
    shown = task.ranking_test
    probabilities = load_exported(tmp_path / "export", "int8").predict(shown.examples.texts, shown.examples.pairs)
    expected = ranking(expected_gains(probabilities, task.task), shown, task.task)["ndcg@10"]
    assert found.variants["int8"].measured.quality == pytest.approx(expected)


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(exported, tmp_path, monkeypatch):
    folder, export = exported("lstm")
    with pytest.raises(ConfigError, match="not empty"):
        export_student(folder, export, quality=False)
    with pytest.raises(ConfigError, match="no variant 'pruned'; it has: float32, float16, int8"):
        export_student(folder, tmp_path / "out", ["pruned"], quality=False)
    with pytest.raises(ConfigError, match="--no-quality"):
        export_student(folder, tmp_path / "out")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="differs from the trained student"):
        export_student(folder, tmp_path / "out", quality=False)
    monkeypatch.setattr(exporting, "_REQUIRED", ("onnx", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'fed-distill\[serve\]'"):
        export_student(folder, tmp_path / "out", quality=False)
    assert list(tmp_path.iterdir()) == []


def test_a_custom_student_is_refused():
    class Own(TextModel):
        kind = "own.module:Own"

        def encode(self, texts, pairs):
            raise AssertionError

        def forward(self, batch, hidden=False):
            raise AssertionError

    with pytest.raises(ModelError, match=r"'own\.module:Own' cannot be exported"):
        exporting._chosen(Own(), None)


def test_an_export_is_not_written_into_the_student(exported):
    student = exported("two-tower")[0]
    with pytest.raises(ConfigError, match="inside the student's own folder"):
        export_student(student, student / "in", quality=False)
    assert not (student / "in").exists()
