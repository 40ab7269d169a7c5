"""A student's scores by unit of the test set against its metrics."""

import numpy as np
import pytest

from fed_distill.config.data import DataConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.data import load
from fed_distill.models import build_student


@pytest.mark.parametrize(
    ("task", "headline"), [("faq", "macro_f1"), ("category", "macro_f1"), ("relevance", "ndcg@10")]
)
def test_the_mean_over_the_units_of_the_test_set_is_the_headline_metric(task, headline):
    data = load(DataConfig(dataset="marketplace", task=task, options={"merchants": 4, "rows": 60}))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    metrics, by_unit = Evaluator(data).test_by_unit(student)
    assert metrics[headline] == pytest.approx(np.mean(by_unit))
    units = len(np.unique(data.test.groups)) if headline == "macro_f1" else metrics["queries"]
    assert len(by_unit) == units


def test_the_qini_coefficient_has_no_values_by_unit():
    data = load(DataConfig(dataset="marketplace", task="marketing-effect", options={"merchants": 4, "rows": 60}))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    metrics, by_unit = Evaluator(data).test_by_unit(student)
    assert metrics["qini"] is not None
    assert by_unit == []
