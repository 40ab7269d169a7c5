"""transformers loads a BERT student from its folder, with the same logits."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import SENTIMENT
from fed_distill.models.student_folder import save_student

TEXTS = ["red phone", "blue shoe pro kühl", "green kettle ultra maxi " * 9]
PAIRS = ["mini 手机", "maxi red blue shoe", "pro"]
SCRATCH = {"rows": 64, "width": 16, "layers": 1}


def loaded(folder):
    """The network as transformers reads it; no weight of it is missing in the file or drawn anew."""
    network, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return network.eval()


@pytest.mark.parametrize("pairs", [PAIRS, None])
@pytest.mark.parametrize("options", [{"vocabulary": "all"}, {"vocabulary": "catalogue"}], ids=str)
def test_a_student_cut_from_a_teacher_loads_with_its_tokenizer(
    options, pairs, task, student, wordpiece_teacher, tmp_path
):
    task = task if pairs else SENTIMENT
    model = student("bert-mini", task, wordpiece_teacher(task), TEXTS, from_teacher=True, max_length=24, **options)
    save_student(tmp_path, model, StudentDescription(task, 300))
    network, tokenizer = loaded(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(TEXTS, pairs, padding=True, truncation=True, return_tensors="pt")
    encoded = model.encode(TEXTS, pairs)
    assert batch["input_ids"].shape == encoded["input_ids"].shape
    with torch.no_grad():
        torch.testing.assert_close(network(**batch).logits, model(encoded).logits, rtol=0, atol=1e-5)
    assert tuple(network.config.id2label.values()) == task.classes
    assert network.config.label2id[task.classes[1]] == 1


@pytest.mark.parametrize("name", ["bert-mini", "distilbert", "mobilebert"])
def test_a_student_from_scratch_loads_with_the_token_ids_of_its_own_encoding(name, task, student, tmp_path):
    model = student(name, task, **SCRATCH)
    save_student(tmp_path, model, StudentDescription(task, 300))
    encoded = model.encode(TEXTS, PAIRS)
    ids = encoded["input_ids"]
    segments = {} if name == "distilbert" else {"token_type_ids": (encoded["segments"] - 1).clamp_min(0)}
    with torch.no_grad():
        logits = loaded(tmp_path)(input_ids=ids, attention_mask=(ids > 0).long(), **segments).logits
        torch.testing.assert_close(logits, model(encoded).logits, rtol=0, atol=1e-5)
    assert not (tmp_path / "tokenizer_config.json").exists()


@pytest.mark.parametrize(
    ("name", "options"), [("two-tower", {}), ("lstm", {}), ("bert-mini", {"ia3": True, **SCRATCH})]
)
def test_other_students_have_no_files_of_transformers(name, options, task, student, tmp_path):
    save_student(tmp_path, student(name, task, **options), StudentDescription(task, 300))
    assert not (tmp_path / "config.json").exists()
