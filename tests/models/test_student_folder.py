"""A student's folder says everything, in a form that another program can check itself against."""

import json

import pytest
import torch

from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import RELEVANCE, SENTIMENT
from fed_distill.errors import ModelError
from fed_distill.models.student_folder import load_saved_student, save_student
from fed_distill.storage.versions import versions

OPTIONS = {
    "two-tower": {"rows": 512, "width": 4, "head_width": 4, "ngrams": (3,)},
    "static": {"width": 4, "vocabulary": "all"},
    "lstm": {"rows": 64, "width": 4},
    "bert-mini": {"rows": 64, "width": 8, "layers": 1},
}


def change(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


@pytest.mark.parametrize("task", [RELEVANCE, SENTIMENT], ids=lambda task: task.name)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_saved_student_is_the_same_and_its_examples_are_what_it_predicts(name, task, student, tmp_path):
    model = student(name, task, **OPTIONS[name])
    save_student(tmp_path / "student", model, StudentDescription(task, 300))
    again, description = load_saved_student(tmp_path / "student")
    assert description == StudentDescription(task, 300)
    assert again.state_dict().keys() == model.state_dict().keys()
    content = json.loads((tmp_path / "student" / "student.json").read_text(encoding="utf-8"))
    assert content["versions"] == versions()
    assert len(content["examples"]) == 4
    for example in content["examples"]:
        batch = {name: torch.tensor([values]) for name, values in example["encoded"].items()}
        expected = model(batch).logits.softmax(dim=-1)[0]
        torch.testing.assert_close(torch.tensor(example["probabilities"]), expected, rtol=0, atol=1e-6)
        encoded = again.encode([example["text"]], [example["pair"]] if task.pair else None)
        assert all(torch.equal(encoded[name], batch[name].to(encoded[name].dtype)) for name in encoded)


def test_encodings_have_the_parameters_of_their_models(student):
    found = {name: student(name, SENTIMENT, **OPTIONS[name]).text_encoding for name in OPTIONS}
    assert {name: one["algorithm"] for name, one in found.items()} == {
        "two-tower": "hashed words and n-grams",
        "static": "tokenizer.json",
        "lstm": "hashed word pieces",
        "bert-mini": "hashed word pieces",
    }
    assert (found["two-tower"]["rows"], found["two-tower"]["ngrams"]) == (512, [3])
    assert (found["lstm"]["rows"], found["lstm"]["max_length"]) == (64, 64)
    assert found["static"]["special_tokens"] is False


def test_a_hash_of_the_specification_is_that_of_the_encoding(student):
    """One word of three letters, by the algorithm of ``docs/how-to/student.md`` in plain integers."""
    model = student("two-tower", SENTIMENT, **OPTIONS["two-tower"])
    spec, wrap = model.text_encoding, (1 << 64) - 1
    base, factor = int(spec["base"], 16), int(spec["salt_factor"], 16)

    def row(codes, salt, first_power):
        value = sum((code + 1) * base ** (place + first_power) for place, code in enumerate(codes))
        value = (value + salt * factor) & wrap
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & wrap
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & wrap
        value ^= value >> 31
        return 1 + ((value >> 32) * (spec["rows"] - 1) >> 32)

    letters = [ord(letter) for letter in "tea"]
    marked = [spec["word_start"], *letters, spec["word_end"]]
    expected = [row(letters, spec["salts"]["word"], 1)]
    expected += [row(marked[start : start + 3], 3, 1) for start in range(3)]
    assert model.encode(["Tea"], None)["text_ids"][0].tolist() == expected


def test_texts_that_this_version_reads_otherwise_are_an_error(student, tmp_path):
    model = student("two-tower", SENTIMENT)
    save_student(tmp_path, model, StudentDescription(SENTIMENT, 300))
    change(tmp_path, "student.json", encoding={**model.text_encoding, "unicode": "1.0"})
    load_saved_student(tmp_path)  # Python's tables of Unicode differ where no text may have it
    change(tmp_path, "student.json", encoding={**model.text_encoding, "algorithm": "of another version"})
    with pytest.raises(ModelError, match="reads texts with algorithm = 'of another version', and this version"):
        load_saved_student(tmp_path)


def test_a_newer_format_is_rejected_with_the_version_that_reads_it(student, tmp_path):
    save_student(tmp_path, student("two-tower", SENTIMENT), StudentDescription(SENTIMENT, 300))
    change(tmp_path, "student.json", format=2, versions={"fed-distill": "9.0"})
    with pytest.raises(ModelError, match=r"student.json has format 2, .* reads format 1: install fed-distill 9.0"):
        load_saved_student(tmp_path)


TASK = {"name": "x", "classes": ["a", "b"], "pair": False, "positive": "a"}


@pytest.mark.parametrize(
    "broken",
    [
        {"task": None},
        {"task": {"name": "x"}},
        {"task": {**TASK, "positive": "c"}},
        {"task": {**TASK, "classes": ["a", "a"]}},
        {"task": {**TASK, "gains": [1.0, 0.5, 0.0]}},
        {"text": {}},
        {"text": {"max_characters": 0}},
        {"format": None},
    ],
)
def test_an_incomplete_description_is_rejected(student, tmp_path, broken):
    save_student(tmp_path, student("two-tower", SENTIMENT), StudentDescription(SENTIMENT, 300))
    change(tmp_path, "student.json", **broken)
    with pytest.raises(ModelError, match=r"student\.json"):
        load_saved_student(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 3}, "has 3 classes of one text, and .* has 2 classes of one text: .* not of one student"),
        ({"pair": True}, "has 2 classes of two texts, and .* has 2 classes of one text"),
    ],
)
def test_files_of_two_students_are_rejected(student, tmp_path, settings, message):
    kind = {"classes": ("a", "b", "c")} if "classes" in settings else {"pair": True}
    other = type(SENTIMENT)(**{"name": "x", "classes": SENTIMENT.classes, "pair": False, "positive": "a", **kind})
    student("two-tower", other).save(tmp_path)
    save_student(tmp_path / "student", student("two-tower", SENTIMENT), StudentDescription(SENTIMENT, 300))
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).replace(tmp_path / "student" / name)
    with pytest.raises(ModelError, match=message):
        load_saved_student(tmp_path / "student")


@pytest.mark.parametrize("file", ["../outside.txt", "/etc/hostname", "folder/inside.txt"])
def test_a_file_outside_the_folder_is_not_read(student, tmp_path, file):
    folder = tmp_path / "student"
    save_student(folder, student("two-tower", SENTIMENT), StudentDescription(SENTIMENT, 300))
    (tmp_path / "outside.txt").write_text("secret")
    change(folder, "model.json", files={"classes": file})
    with pytest.raises(ModelError, match="outside the folder"):
        load_saved_student(folder)


@pytest.mark.parametrize("settings", [{"rows": "many"}, {"rows": 0}, {"width": None}, {"nobody": 1}])
def test_settings_that_cannot_be_built_are_rejected(student, tmp_path, settings):
    save_student(tmp_path, student("two-tower", SENTIMENT), StudentDescription(SENTIMENT, 300))
    described = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["settings"]
    change(tmp_path, "model.json", settings=described | settings)
    with pytest.raises(ModelError, match="cannot rebuild"):
        load_saved_student(tmp_path)


def test_weights_that_are_not_finite_are_rejected(student, tmp_path):
    model = student("two-tower", SENTIMENT)
    save_student(tmp_path, model, StudentDescription(SENTIMENT, 300))
    name, value = next(iter(model.state_dict().items()))
    value.view(-1)[0] = float("nan")
    model.save(tmp_path)
    with pytest.raises(ModelError, match=f"'{name}' are not finite"):
        load_saved_student(tmp_path)


def test_a_model_of_an_earlier_version_is_read_with_its_whole_names(student, tmp_path):
    from safetensors.torch import save_file

    from fed_distill.models import load_model

    model = student("bert-mini", SENTIMENT, **OPTIONS["bert-mini"])
    model.save(tmp_path)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    description = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    del description["unsaved_prefix"]
    (tmp_path / "model.json").write_text(json.dumps(description), encoding="utf-8")
    encoded = model.encode(["red phone"], None)
    torch.testing.assert_close(load_model(tmp_path)(encoded).logits, model(encoded).logits)
