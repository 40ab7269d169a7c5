"""A student's scores by unit of the test set against its metrics."""

import numpy as np
import pytest

from fed_distill.config.data import DataConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.data import load
from fed_distill.evaluation.campaigns import BLOCKS
from fed_distill.models import build_student


@pytest.mark.parametrize(
    ("task", "headline"),
    [("faq", "macro_f1"), ("category", "macro_f1"), ("relevance", "ndcg@10"), ("marketing-effect", "qini")],
)
def test_the_mean_over_the_units_of_the_test_set_is_the_headline_metric(task, headline):
    data = load(DataConfig(dataset="marketplace", task=task, options={"merchants": 4, "rows": 60}))
    student = build_student("two-tower", {"rows": 64, "width": 4, "head_width": 4}, data.task)
    metrics, by_unit = Evaluator(data).test_by_unit(student)
    assert metrics[headline] == pytest.approx(np.mean(by_unit))
    groups = len(np.unique(data.test.groups))
    units = {"macro_f1": groups, "ndcg@10": metrics.get("queries"), "qini": min(groups, BLOCKS)}
    assert len(by_unit) == units[headline]
