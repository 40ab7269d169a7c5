"""Students and teachers by name, from checked options, from settings and from folders."""

import json

import pytest
import torch

from fed_distill.config import TeacherConfig
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models import STUDENTS, TEACHERS, build_student, load_model, load_teacher, predict, rebuild
from fed_distill.models.two_tower import TwoTower

OWN_STUDENT = '''
import torch
from torch import nn
from fed_distill.models import Outputs, TextModel

class Letters(TextModel):
    """Counts letters."""

    def __init__(self, classes: int, pair: bool, *, letters: int = 26):
        super().__init__()
        self.tables = {"rows.weight": ("letters",)}
        self.rows = nn.Embedding(letters + 1, classes, padding_idx=0)

    def encode(self, texts, pairs):
        size = self.rows.num_embeddings - 1
        ids = [[ord(letter) % size + 1 for letter in text] for text in texts]
        return {"letters": nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)}

    def forward(self, batch, hidden=False):
        return Outputs(self.rows(batch["letters"]).sum(dim=1))

def half(classes: int, pair: bool, teacher, *, share: float = 0.5):
    model = Letters(classes, pair, letters=int(teacher.rows.num_embeddings * share))
    model.kind = "own_letters:Letters"
    model.settings = {"classes": classes, "pair": pair, "letters": model.rows.num_embeddings - 1}
    return model

def anonymous(classes: int, pair: bool):
    return Letters(classes, pair)

not_a_model = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_letters.py").write_text(OWN_STUDENT)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two-tower", {"row": 5}, r"'two-tower' has no option 'row'; it has: .*rows"),
        ("two-tower", {"classes": 5}, "no option 'classes'"),
        ("two-tower", {"rows": 2}, "option rows must be at least 16"),
        ("lstm", {"width": "wide"}, "option width must be a whole number, not"),
        ("bert-mini", {"teacher": 1}, "no option 'teacher'"),
        ("bert-mini", {"width": 30, "heads": 4}, "multiple of 4"),
        ("two-towers", {}, "unknown student 'two-towers'; did you mean two-tower"),
        ("own_letters:Letters", {"letter": 3}, "no option 'letter'; it has: letters"),
        ("own_letters:not_a_model", {}, "neither a TextModel class nor a function"),
        ("own_letters:anonymous", {}, "must have a kind and settings"),
        ("own_letters:nn.Linear", {}, "has no 'nn.Linear'"),
    ],
)
def test_wrong_names_and_options_are_named(name, options, message, task, own):
    with pytest.raises(ConfigError, match=message):
        build_student(name, options, task)


def test_every_built_in_name_can_be_resolved():
    for registry in (STUDENTS, TEACHERS):
        for name in registry:
            assert callable(registry.resolve(name))


def test_own_student_is_one_class_that_builds_narrows_saves_and_loads(own, task, tmp_path):
    model = build_student("own_letters:Letters", {"letters": 10}, task)
    batch = model.encode(["abc", "b"], ["", ""])
    assert model.settings == {"classes": 4, "pair": True, "letters": 10}
    model.save(tmp_path / "saved")
    torch.testing.assert_close(load_model(tmp_path / "saved")(batch).logits, model(batch).logits)
    touched = torch.unique(torch.cat([torch.tensor([0]), batch["letters"].flatten()]))
    narrow = model.narrowed({"rows.weight": touched})
    renumbered = {"letters": torch.searchsorted(touched, batch["letters"])}
    torch.testing.assert_close(narrow(renumbered).logits, model(batch).logits)
    assert narrow.parameter_count() == len(touched) * 4 and narrow.rows.num_embeddings == len(touched)


def test_a_function_may_build_from_the_teacher_and_its_model_needs_no_teacher(own, task, tmp_path):
    teacher = build_student("own_letters:Letters", {}, task)
    model = build_student("own_letters:half", {"share": 0.25}, task, teacher)
    assert len(model.rows.weight) == 7
    model.save(tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").rows.weight, model.rows.weight)


def test_rebuilding_calls_nothing_but_model_classes(own):
    for kind in ("os:getcwd", "own_letters:half", "pathlib:Path"):
        with pytest.raises(ModelError, match="not the name of a TextModel class"):
            rebuild(kind, {})


def test_rebuilt_model_takes_the_weights_of_the_described_one(student, task):
    model = student("two-tower", task, rows=100)
    settings = json.loads(json.dumps(model.settings))
    state = torch.get_rng_state()
    again = rebuild(model.kind, settings)
    again.load_state_dict(model.state_dict())
    batch = model.encode(["a"], ["b"])
    torch.testing.assert_close(again(batch).logits, model(batch).logits)
    assert torch.equal(torch.get_rng_state(), state), "rebuilding must not draw from the global state"


def test_parameters_are_counted(student, task):
    model = student("two-tower", task, rows=100, width=4, head_width=3)
    assert model.parameter_count() == 100 * (4 + 1) + (9 + 1) * 3 + (3 + 1) * 4


def _remove_weights(folder):
    (folder / "model.safetensors").unlink()


def _cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _break_description(folder):
    (folder / "model.json").write_text('{"kind": ')


def _other_size(folder):
    description = json.loads((folder / "model.json").read_text())
    description["settings"]["rows"] = 200
    (folder / "model.json").write_text(json.dumps(description))


def _other_kind(folder):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "kind": "gone"}))


def _unknown_setting(folder):
    description = json.loads((folder / "model.json").read_text())
    description["settings"]["depth"] = 2
    (folder / "model.json").write_text(json.dumps(description))


def _not_a_description(folder):
    (folder / "model.json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [
        _remove_weights,
        _cut_weights,
        _break_description,
        _other_size,
        _other_kind,
        _unknown_setting,
        _not_a_description,
    ],
)
def test_damaged_model_is_refused_naming_the_folder(damage, student, task, tmp_path):
    student("two-tower", task, rows=100).save(tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=str(tmp_path / "model")):
        load_model(tmp_path / "model")


def test_missing_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_model_made_by_hand_cannot_be_saved(tmp_path):
    with pytest.raises(ModelError, match="build_student"):
        TwoTower(classes=2, pair=True, rows=20).save(tmp_path)


def test_teacher_takes_the_configured_length_and_its_own_options(single):
    config = TeacherConfig(
        model="bert-small", max_length=16, options={"layers": 1, "width": 32, "heads": 2, "rows": 100}
    )
    teacher = load_teacher(config, single)
    encoded = teacher.encode(["word " * 50], None)
    assert encoded["input_ids"].shape == (1, 16)
    assert teacher(encoded).logits.shape == (1, 3)


def test_teacher_options_are_checked(single):
    with pytest.raises(ConfigError, match="teacher 'bert-small' has no option 'depth'"):
        load_teacher(TeacherConfig(model="bert-small", options={"depth": 3}), single)
    with pytest.raises(ConfigError, match="at least 8 tokens"):
        load_teacher(TeacherConfig(model="bert-small", max_length=3), single)


def test_predictions_are_softmax_at_the_temperature_in_the_order_of_the_input(student, task):
    model = student("lstm", task, rows=100, width=8)
    texts = ["word " * length for length in (9, 1, 5, 0, 3, 7)]
    encoded = model.encode(texts, texts[::-1])
    for temperature in (1.0, 2.5):
        expected = torch.cat(
            [
                torch.softmax(model(model.collate(encoded, torch.tensor([row]))).logits / temperature, dim=-1)
                for row in range(len(texts))
            ]
        )
        for batch_size in (1, 4, 100):
            torch.testing.assert_close(predict(model, encoded, batch_size, temperature), expected.detach())


def test_predicting_needs_no_gradient_and_leaves_the_mode_as_it_was(student, task):
    model = student("bert-mini", task, rows=100, width=16, dropout=0.5)
    encoded = model.encode(["a", "b c"], ["d", "e"])
    in_evaluation = predict(model, encoded)
    model.train()
    in_training = predict(model, encoded)
    assert model.training and not in_training.requires_grad and not in_training.is_inference()
    torch.testing.assert_close(in_training, in_evaluation)
    assert predict(model.eval(), encoded) is not None and not model.training


def test_predicting_nothing_gives_no_rows(student, task):
    model = student("two-tower", task, rows=100)
    assert predict(model, model.encode([], [])).shape == (0, 4)
