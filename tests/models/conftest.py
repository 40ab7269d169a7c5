import pytest

from fed_distill import seeds
from fed_distill.data.examples import Task
from fed_distill.models import build_student


@pytest.fixture
def task():
    return Task("relevance", ("exact", "substitute", "complement", "irrelevant"), pair=True, positive="exact")


@pytest.fixture
def single():
    return Task("category", ("phone", "coffee", "other"), pair=False, positive="phone")


@pytest.fixture
def student():
    """Build a student whose weights depend on nothing but its name and options."""

    def build(name, task, teacher=None, **options):
        with seeds.scope(0, "student"):
            return build_student(name, options, task, teacher).eval()

    return build
