"""Sizes from a file or a message are compared before anything is allocated."""

import json
import resource

import pytest
import torch

from fed_distill.data.tasks import SENTIMENT
from fed_distill.errors import ModelError, TrainingError
from fed_distill.merchant.request_validation import outlined
from fed_distill.models import rebuild
from fed_distill.models.outline import check_shapes, without_memory
from fed_distill.models.student_folder import StudentDescription, load_saved_student, save_student

TRANSFORMER = "fed_distill.models.transformer:Transformer"
BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def change_settings(folder, **changes):
    path = folder / "model.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    settings = description["settings"]
    settings |= {**changes, **({"config": settings["config"] | changes["config"]} if "config" in changes else {})}
    path.write_text(json.dumps(description), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "two-tower",
            {"rows": 4_000_000},
            r"'bag.importance' is \[512, 1\] in the file and \[4000000, 1\] by settings",
        ),
        ("two-tower", {"rows": 10**12}, r"'bag.importance' is .* and \[1000000000000, 1\] by settings"),
        ("lstm", {"width": 10**6}, r"is \[1, 8\] in the file and \[1, 2000000\] by settings"),
        ("bert-mini", {"config": {"vocab_size": 10**9}}, r"in the file and \[1000000000, 8\] by settings"),
        ("bert-mini", {"config": {"num_hidden_layers": 2}}, "is missing in the file and .* by settings"),
        ("bert-mini", {"config": {"num_hidden_layers": 10**9}}, "more than 5,000 weight tensors"),
    ],
)
def test_a_folder_with_other_sizes_is_rejected_without_memory_for_them(name, settings, message, student, tmp_path):
    options = {
        "two-tower": {"rows": 512, "width": 64},
        "lstm": {"rows": 64, "width": 4},
        "bert-mini": {"rows": 64, "width": 8, "heads": 1, "layers": 1},
    }
    save_student(tmp_path, student(name, SENTIMENT, **options[name]), StudentDescription(SENTIMENT, 300))
    load_saved_student(tmp_path)
    change_settings(tmp_path, **settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=message):
        load_saved_student(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "KiB; the first table has 1 GB"


def test_a_number_of_classes_is_compared_before_each_has_a_name(student, tmp_path):
    model = student("bert-mini", SENTIMENT, rows=64, width=8, layers=1)
    save_student(tmp_path, model, StudentDescription(SENTIMENT, 300))
    change_settings(tmp_path, classes=10**9)
    with pytest.raises(ModelError, match=r"has 1000000000 classes of one text, and .* has 2 classes"):
        load_saved_student(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 10**9}, "1,000,000,000 classes are more than 100,000"),
        ({"config": {**BERT, "num_hidden_layers": 10**9}}, "more than 5,000 weight tensors"),
    ],
)
def test_a_student_of_a_request_is_rejected_before_its_python_objects_fill_the_memory(changes, message):
    settings = {"classes": 2, "pair": True, "config": BERT, "max_length": 16, **changes}
    with pytest.raises(TrainingError, match=message):
        outlined(json.dumps({"kind": TRANSFORMER, "settings": settings}))


def test_models_that_are_built_later_are_neither_counted_nor_without_memory(student):
    with without_memory():
        assert student("lstm", SENTIMENT, rows=64, width=4).head.weight.is_meta
    layers = [torch.nn.Linear(1, 1) for _ in range(3_000)]
    assert len(layers) == 3_000 and not layers[0].weight.is_meta


def test_weights_that_fit_in_name_and_shape_are_accepted_whatever_their_values():
    settings = {"classes": 2, "pair": False, "rows": 64, "width": 4}
    weights = rebuild("lstm", settings).state_dict()
    check_shapes("lstm", settings, weights)
    with pytest.raises(ModelError, match=r"'extra' is \[1\] in the file and missing by settings"):
        check_shapes("lstm", settings, {**weights, "extra": torch.zeros(1)})
