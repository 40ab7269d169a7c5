"""What is trained on the server's labels only has nothing of a teacher: no assistant, and none of its weights."""

from types import SimpleNamespace

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.data.tasks import SENTIMENT
from fed_distill.errors import ConfigError
from fed_distill.experiment import student_factory
from fed_distill.experiment.student_factory import StudentFactory
from fed_distill.models import build_student
from fed_distill.reporting.callbacks import Callback

OPTIONS = {"rows": 64, "width": 4}
SOURCE = '''
from fed_distill.models.lstm import LSTM

class Drawn(LSTM):
    """An LSTM that ignores the teacher."""

    def __init__(self, classes: int, pair: bool, teacher=None):
        super().__init__(classes, pair, rows=64, width=4)

class Copied(Drawn):
    """Copies the teacher and does not say so."""

    def __init__(self, classes: int, pair: bool, teacher=None):
        super().__init__(classes, pair)
        if teacher is not None:
            self.load_state_dict(teacher.state_dict())

class Declared(Copied):
    of_teacher = True

def requires(classes: int, pair: bool, teacher):
    model = Drawn(classes, pair)
    model.load_state_dict(teacher.state_dict())
    model.kind, model.settings = "own_of_teacher:Drawn", {"classes": classes, "pair": pair}
    return model

def sized(classes: int, pair: bool, teacher):
    model = Drawn(classes, pair)
    model.kind = "own_of_teacher:Drawn"
    model.settings = {"classes": classes, "pair": pair, "teacher_rows": 0 if teacher is None else 64}
    return model
'''


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A function (student) -> a factory with a trained teacher, of this student."""
    (tmp_path / "own_of_teacher.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(student_factory, "server_texts", lambda data, candidates: ["red phone"])
    with seeds.scope(0, "teacher"):
        teacher = build_student("lstm", OPTIONS, SENTIMENT)

    def make(name, **changes):
        experiment = Experiment.parse({"student": {"model": name}, **changes})
        teaching = SimpleNamespace(teacher=teacher, candidates=None, ensemble=SimpleNamespace(cache=tmp_path / "cache"))
        server = SimpleNamespace(data=SimpleNamespace(task=SENTIMENT))
        made = StudentFactory(experiment, 0, teaching, server, Callback(), evaluator=None)
        made._depends_on = {}  # in place of the fingerprints of data
        return made

    return make


def equal(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("name", ["own_of_teacher:Copied", "own_of_teacher:Declared"])
def test_a_student_that_copies_its_teacher_does_not_where_there_is_none(factory, name):
    made = factory(name)
    assert equal(made.student(name), made.teaching.teacher)
    alone = made.without_teacher(name)
    assert not equal(alone, made.teaching.teacher)
    assert equal(alone, made.without_teacher(name)), "the draw depends on seed and name only"


def test_a_student_that_ignores_its_teacher_is_the_same_without_it(factory):
    name = "own_of_teacher:Drawn"
    made = factory(name)
    assert equal(made.without_teacher(name), made.student(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_of_teacher:requires", r"cannot be built without a teacher \(.*\): set of_teacher = True on the model"),
        ("own_of_teacher:sized", "has other settings if there is no teacher: set of_teacher = True"),
    ],
)
def test_a_student_that_needs_its_teacher_must_say_so(factory, name, message):
    with pytest.raises(ConfigError, match=f"student '{name}' {message}"):
        factory(name).without_teacher(name)


def test_a_student_on_labels_only_is_stored_without_training_assistants(factory, monkeypatch):
    monkeypatch.setattr(StudentFactory, "levels", property(lambda made: pytest.fail("an assistant is trained")))
    trained = []
    monkeypatch.setattr(StudentFactory, "on_labels", lambda made, name: trained.append(name) or {"w": torch.ones(2)})
    assistants = {"distill": {"assistants": [{"model": "lstm", "options": OPTIONS, "epochs": 1}]}}
    for made in (factory("lstm", **assistants), factory("lstm", **assistants), factory("lstm")):
        weights, _ = made.start("lstm", "labels")
        assert torch.equal(weights["w"], torch.ones(2))
    assert trained == ["lstm"], "stored, for all settings of [distill]"
