"""What merchants leave alone is chosen by name, or is a transformer's embeddings."""

import pytest

from fed_distill.errors import ConfigError
from fed_distill.models import build_student
from fed_distill.models.freezing import freeze


def trained(student):
    return {name for name, value in student.named_parameters() if value.requires_grad}


def test_patterns_choose_weights_by_name(student, task):
    student = student("two-tower", task)
    every = {name for name, _ in student.named_parameters()}
    assert trained(freeze(student, ["bag.*"])) == {name for name in every if name.startswith("head.")}
    assert trained(freeze(student, ["*.bias", "bag.table"])) == {"bag.importance", "head.0.weight", "head.2.weight"}
    assert trained(freeze(student, [])) == every


def test_without_patterns_a_transformers_embeddings_are_frozen_and_nothing_of_another_student(student, task):
    student = student("two-tower", task)
    assert trained(freeze(student, None)) == {name for name, _ in student.named_parameters()}
    bert = build_student("bert-mini", {"width": 16, "heads": 2, "rows": 64, "layers": 1}, task)
    frozen = {name for name, _ in bert.named_parameters()} - trained(freeze(bert, None))
    assert frozen == {
        f"network.bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")
    }


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["bags.*"], r"no weight's name matches 'bags\.\*'; there are bag\.table"), (["*"], "leaves no weight to train")],
)
def test_patterns_that_cannot_be_meant_are_refused(student, task, patterns, message):
    with pytest.raises(ConfigError, match=message):
        freeze(student("two-tower", task), patterns)
