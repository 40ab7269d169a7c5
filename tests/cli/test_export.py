"""``fed-distill export`` shows every variant beside the trained student, with what it costs and gives."""

from pathlib import Path

from typer.testing import CliRunner

from fed_distill.cli.main import app
from fed_distill.serving import export as exporting
from fed_distill.serving.exported_folder import ExportDescription


def measured(quality, p99=2.5):
    return {"p50_ms": 1.25, "p99_ms": p99, "difference": 0.004, "quality": quality}


def description(quality):
    files = {"classifier.onnx": {"bytes": 2_500_000, "sha256": "0" * 64}}
    return ExportDescription(
        format=1,
        student="digest",
        kind="lstm",
        width=None,
        graphs={"classifier.onnx": {"inputs": {}, "outputs": {}}},
        metric="ndcg@10",
        trained={"bytes": 10_000_000, "measured": measured(quality)},
        variants={"int8": {"files": files, "settings": {}, "measured": measured(quality, 3.75)}},
        versions={},
    )


def test_a_row_has_size_share_latency_difference_and_quality(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(exporting, "export_student", lambda *given: asked.append(given) or description(0.94321))
    arguments = ["export", "runs/a", "--to", str(tmp_path), "--variants", "int8, float16", "--web", "int8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line.strip()}
    assert rows["int8"] == ["int8", "2.50", "25", "%", "1.25", "3.75", "4.0e-03", "0.9432"]
    assert rows["trained"][2:5] == ["10.00", "100", "%"]
    assert asked == [(Path("runs/a"), tmp_path, ["int8", "float16"], True, "int8")]


def test_quality_that_was_not_measured_is_a_dash(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(exporting, "export_student", lambda *given: asked.append(given) or description(None))
    done = CliRunner().invoke(app, ["export", "runs/a", "--to", str(tmp_path), "--no-quality"])
    assert next(line for line in done.output.splitlines() if line.startswith("int8")).split()[-1] == "–"
    assert asked == [(Path("runs/a"), tmp_path, None, False, None)]
