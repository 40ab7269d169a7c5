"""Students of every kind that is exported, and their exports, made once."""

import numpy as np
import pytest
import torch

from fed_distill import load_student, seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import RECOMMEND, RELEVANCE, SENTIMENT
from fed_distill.models import build_student
from fed_distill.models.student_folder import save_student
from fed_distill.serving.export import export_student
from fed_distill.serving.student import Student
from fed_distill.serving.web_export import write_web

KINDS = {
    "two-tower": ("two-tower", {"rows": 512, "width": 8, "head_width": 8, "max_features": 40}, RELEVANCE),
    "two-tower, one text": ("two-tower", {"rows": 512, "width": 8, "head_width": 8}, SENTIMENT),
    "static": ("static", {"width": 8, "vocabulary": "all"}, RELEVANCE),
    "lstm": ("lstm", {"rows": 512, "width": 8}, RELEVANCE),
    "lstm, one text": ("lstm", {"rows": 512, "width": 8}, SENTIMENT),
    "recommending": ("two-tower", {"rows": 512, "width": 8, "head_width": 8}, RECOMMEND),
    "bert-mini": ("bert-mini", {"rows": 512, "width": 16, "layers": 1}, RELEVANCE),
}


def stirred(model):
    """Give each weight that starts at a constant a value of its own, padding aside, as training would."""
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bias" in name or "importance" in name:
                weight += torch.from_numpy(draw.normal(0, 0.3, tuple(weight.shape)).astype(np.float32))
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory, wordpiece_teacher):
    """A function: name of ``KINDS`` -> (folder of the trained student, folder of its export with all variants)."""
    made = {}

    def get(kind):
        if kind not in made:
            name, options, task = KINDS[kind]
            folder = tmp_path_factory.mktemp("exported")
            with seeds.scope(0, "exported student"):
                model = stirred(build_student(name, options, task, wordpiece_teacher(task)))
            save_student(folder / "student", model, StudentDescription(task, 300))
            export_student(folder / "student", folder / "export", quality=False)
            made[kind] = folder / "student", folder / "export"
        return made[kind]

    return get


@pytest.fixture(scope="session")
def web(exported, tmp_path_factory):
    """A function: kind and variant -> folder of the web export."""
    made = {}

    def get(kind="two-tower", variant="float32"):
        if (kind, variant) not in made:
            folder, _ = exported(kind)
            made[kind, variant] = tmp_path_factory.mktemp("web") / "web"
            write_web(made[kind, variant], load_student(folder), folder, variant)
        return made[kind, variant]

    return get


@pytest.fixture
def searching(task):
    """A two-tower student of pairs with gains."""
    with seeds.scope(0, "served student"):
        model = build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, task)
    return Student(model, StudentDescription(task, 60))
