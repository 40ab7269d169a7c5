"""Students that are served."""

import pytest

from fed_distill import seeds
from fed_distill.models import build_student
from fed_distill.models.student_folder import StudentDescription
from fed_distill.serving.student import Student


@pytest.fixture
def searching(task):
    """A two-tower student of pairs with gains."""
    with seeds.scope(0, "served student"):
        model = build_student("two-tower", {"rows": 512, "width": 8, "head_width": 8}, task)
    return Student(model, StudentDescription(task, 60))
