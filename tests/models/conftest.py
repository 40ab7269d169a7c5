import pytest

from fed_distill import seeds
from fed_distill.data.examples import Task
from fed_distill.models import build_student

WORDS = ("red phone", "blue shoe pro", "green kettle ultra maxi", "mini 手机", "kühl maximal")


@pytest.fixture
def task():
    return Task("relevance", ("exact", "substitute", "complement", "irrelevant"), pair=True, positive="exact")


@pytest.fixture
def single():
    return Task("category", ("phone", "coffee", "other"), pair=False, positive="phone")


@pytest.fixture
def student(wordpiece_teacher):
    """Build a student whose weights depend on nothing but its name and options; ``static`` has a tiny teacher."""

    def build(name, task, teacher=None, texts=None, **options):
        if name == "static" and teacher is None:
            teacher, texts = wordpiece_teacher(task), WORDS
        with seeds.scope(0, "student"):
            return build_student(name, options, task, teacher, texts).eval()

    return build
