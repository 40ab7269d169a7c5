"""How far a variant may be from the trained student is bounded, whatever its export says of itself."""

import hashlib
import json
import shutil

import pytest
import torch

from fed_distill import seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import ModelError
from fed_distill.models import build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving import export as exporting
from fed_distill.serving.export import export_student
from fed_distill.serving.exported_folder import ExportDescription
from fed_distill.serving.served_student import load_checked
from fed_distill.serving.service_config import StudentTable
from tests.serving.test_exported_folder import rewrite

BOUNDS = {"float32": 1e-5, "float16": 0.01, "int8": 0.15, "int4": 0.4, "pruned": 1.0}


def trained(folder, seed, change=lambda model: None):
    """A student whose head is as decided as a trained one's."""
    with seeds.scope(seed, "decided student"):
        model = build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, RELEVANCE)
    with torch.no_grad():
        model.head[2].weight *= 60
        change(model)
    save_student(folder, model, StudentDescription(RELEVANCE, 300))
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports of two students of one shape."""
    folder = tmp_path_factory.mktemp("tolerances")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "latencies", lambda *_: [1.0])
        for seed in (0, 1):
            export_student(trained(folder / f"student{seed}", seed), folder / f"export{seed}", quality=False)
    return folder / "export0", folder / "export1"


@pytest.fixture
def export(exports, tmp_path):
    return shutil.copytree(exports[0], tmp_path / "export")


def say(export, variant, difference):
    rewrite(export, lambda content: content["variants"][variant]["measured"].update(difference=difference))


@pytest.mark.parametrize("variant", BOUNDS)
def test_a_difference_that_no_storage_explains_is_refused(export, variant):
    for difference in (1.01 * BOUNDS[variant], 1e9, 1e308, -1e-9):
        say(export, variant, difference)
        with pytest.raises(ModelError, match=rf"variants\.{variant}\.measured\.difference is .*: export the student"):
            ExportDescription.read(export)
    say(export, variant, BOUNDS[variant])
    load_checked(StudentTable(student=export, variant=variant), 1)


@pytest.mark.parametrize("variant", BOUNDS)
def test_graphs_of_another_student_are_refused_with_the_largest_difference(export, exports, variant):
    """By one who can write the folder: hashes are right, and the difference is what may be said at most."""
    for path in (exports[1] / variant).iterdir():
        content = path.read_bytes()
        (export / variant / path.name).write_bytes(content)
        found = {path.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        rewrite(export, lambda content, found=found: content["variants"][variant]["files"].update(found))
    say(export, variant, BOUNDS[variant])
    with pytest.raises(ModelError, match=f"probabilities of variant {variant} differ"):
        load_checked(StudentTable(student=export, variant=variant), 1)


@pytest.mark.parametrize("tolerance", [1.1e-5, 1.0, 1e300, -1.0])
def test_the_tolerance_of_the_conformance_file_is_bounded(export, tolerance):
    path = export / "conformance.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "tolerance": tolerance}), "utf-8")
    with pytest.raises(ModelError, match=r"tolerance is .*, and must be at most 1e-05"):
        load_checked(StudentTable(student=export), 1)


def test_a_pruned_variant_without_probabilities_of_its_own_is_refused(export):
    path = export / "conformance.json"
    content = json.loads(path.read_text("utf-8"))
    del content["examples"][3]["pruned"]
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelError, match=r"no probabilities of the variant pruned, .*; export the student again"):
        load_checked(StudentTable(student=export, variant="pruned"), 1)
    load_checked(StudentTable(student=export, variant="int8"), 1)


def test_a_variant_that_would_be_refused_is_not_written(tmp_path, monkeypatch):
    """A huge row makes the seven others, with which it shares a scale of int8, zero."""
    monkeypatch.setattr(exporting, "latencies", lambda *_: [1.0])

    def one_huge_row_of_eight(model):
        model.bag.table[8::8] *= 1e6

    student = trained(tmp_path / "student", 0, one_huge_row_of_eight)
    with pytest.raises(ModelError, match=r"variant int8 differs .* more than 0\.15: nothing was written; leave it out"):
        export_student(student, tmp_path / "export", ["int8"], quality=False)
    assert not (tmp_path / "export").exists()
    export_student(student, tmp_path / "export", ["float32"], quality=False)
