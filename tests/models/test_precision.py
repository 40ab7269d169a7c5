"""A precision that a processor has not is refused before anything is trained."""

import pytest
import torch

from fed_distill.data import load
from fed_distill.data.tasks import RELEVANCE, SENTIMENT
from fed_distill.errors import ConfigError
from fed_distill.experiment.preflight import check_models
from fed_distill.models import build_student
from fed_distill.models.precision import check_precision

CPU = torch.device("cpu")


class Unknown(torch.nn.Module):
    """A layer that the processor has in float32 only."""

    def forward(self, values):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive")
        return values


@pytest.mark.parametrize("task", [RELEVANCE, SENTIMENT])
def test_a_layer_without_bfloat16_is_named_with_its_key(task):
    student = build_student("two-tower", {"rows": 50, "width": 4}, task)
    check_precision(student, task.pair, "bfloat16", CPU, "training.precision")
    student.head = torch.nn.Sequential(student.head, Unknown())
    for precision in ("float32", "tf32"):
        check_precision(student, task.pair, precision, CPU, "training.precision")
    said = (
        r"^training\.precision = 'bfloat16': two-tower cannot be computed in it on this cpu; set 'float32' \(could not"
    )
    with pytest.raises(ConfigError, match=said):
        check_precision(student, task.pair, "bfloat16", CPU, "training.precision")


def test_the_model_is_left_as_it_was():
    student = build_student("two-tower", {"rows": 50, "width": 4}, RELEVANCE)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for precision in ("tf32", "bfloat16"):
        check_precision(student, True, precision, CPU, "teacher.precision")
    for name, value in student.state_dict().items():
        assert torch.equal(before[name], value) and value.dtype == before[name].dtype
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("key", ["teacher", "training"])
def test_it_is_checked_before_a_run(tiny_experiment, tmp_path, monkeypatch, key):
    """Here a processor without any layer in bfloat16."""
    experiment = tiny_experiment(
        tmp_path, {f"{key}.precision": "bfloat16", "student.model": "lstm", "student.options": {}}
    )
    data = load(experiment.data)
    check_models(experiment.with_changes({f"{key}.precision": "float32"}), data)

    def refuse(*_):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(torch, "autocast", refuse)
    with pytest.raises(ConfigError, match=rf"^{key}\.precision = 'bfloat16'"):
        check_models(experiment, data)
