"""Runs of students whose vocabulary is chosen by the server's texts: sites rebuild them from requests alone."""

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fed_distill.models import load_model

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture
def teacher_folder(wordpiece_teacher, task, tmp_path):
    teacher = wordpiece_teacher(task)
    teacher.network.save_pretrained(tmp_path / "teacher")
    tokenizer = Tokenizer.from_str(teacher.settings["tokenizer"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("static", {"width": 2, "head_width": 4}),
        ("bert-mini", {"from_teacher": True, "layers": 1, "vocabulary": 1, "max_length": 24}),
    ],
)
def test_student_with_a_vocabulary_is_trained_by_a_federation(
    model, options, teacher_folder, tiny_experiment, simulate, outcome_of, tmp_path
):
    changes = {
        "teacher.model": str(teacher_folder),
        "teacher.options": {},
        "student.model": model,
        "student.options": options,
        "controls": [],
        "adaptation.enabled": False,
        "federation.rounds": 1,
    }
    folder, _ = simulate(tiny_experiment(tmp_path / "runs", changes))
    outcome_of(folder)
    student = load_model(folder / "student")
    size = Tokenizer.from_str(student.settings["tokenizer"]).get_vocab_size()
    table = next(iter(student.tables))
    assert len(student.state_dict()[table]) == size
    assert size < Tokenizer.from_file(str(teacher_folder / "tokenizer.json")).get_vocab_size()
