"""A chain: every level learns from the one above it, is trained once, and made again when its file is torn."""

import logging

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import AssistantConfig, DistillConfig
from fed_distill.data.examples import Task
from fed_distill.distill.chain import levels
from fed_distill.distill.transfer import DistillationTarget
from fed_distill.models import build_student

TASK = Task("toy", ("same", "near", "far"), pair=True, positive="same")
TEACHER = torch.tensor([[0.7, 0.2, 0.1]])
ASSISTANTS = [
    AssistantConfig(model="lstm", options={"rows": 64, "width": 4}, epochs=2, weight=0.5),
    AssistantConfig(model="two-tower", options={"rows": 64, "width": 4, "head_width": 4}, epochs=1),
]


class Workshop:
    """Builds, "trains" and labels levels, and notes what it was asked."""

    def __init__(self):
        self.trained, self.uppers = [], []

    def build(self, assistant, place):
        with seeds.scope(0, "assistant", place):
            return build_student(assistant.model, assistant.options, TASK)

    def train(self, model, target, assistant, place, upper):
        self.uppers.append(upper)
        self.trained.append((place, assistant.model, target.assistant.tolist(), target.assistant_weight))
        return {name: value + place for name, value in model.state_dict().items()}

    def label(self, model, name):
        last = model.head[-1] if hasattr(model.head, "__len__") else model.head
        share = last.bias[0].item() % 0.5
        return torch.tensor([[share, 0.5, 0.5 - share]])

    def levels(self, cache, assistants=ASSISTANTS, depends_on="teacher"):
        target = DistillationTarget(DistillConfig(), TASK, TEACHER, 2.0)
        return levels(assistants, target, depends_on, cache, self.build, self.train, self.label)


@pytest.fixture
def workshop():
    return Workshop()


def test_every_level_follows_the_one_above_it(workshop, tmp_path):
    first, second = workshop.levels(tmp_path)
    assert workshop.trained == [
        (1, "lstm", TEACHER.tolist(), 0.5),
        (2, "two-tower", first.labels.tolist(), 1.0),
    ]
    assert workshop.uppers == [None, first.model]
    with seeds.scope(0, "assistant", 2):
        fresh = build_student("two-tower", ASSISTANTS[1].options, TASK)
    for name, value in fresh.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value + 2)
    assert not second.model.training


def test_a_level_that_is_there_is_not_trained_again(workshop, tmp_path):
    before = workshop.levels(tmp_path)
    workshop.trained.clear()
    after = workshop.levels(tmp_path)
    assert not workshop.trained
    for one, other in zip(before, after, strict=True):
        assert one.name == other.name
        assert torch.equal(one.labels, other.labels)
        assert one.model.state_dict().keys() == other.model.state_dict().keys()
        assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())


def test_a_chain_that_was_cut_short_goes_on_from_its_last_level(workshop, tmp_path):
    workshop.levels(tmp_path, ASSISTANTS[:1])
    workshop.levels(tmp_path)
    assert [place for place, *_ in workshop.trained] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"depends_on": "another teacher"}, [1, 2]),
        ({"assistants": [ASSISTANTS[0].model_copy(update={"epochs": 3.0}), ASSISTANTS[1]]}, [1, 2]),
        ({"assistants": [ASSISTANTS[0], ASSISTANTS[1].model_copy(update={"weight": 2.0})]}, [2]),
        ({"assistants": ASSISTANTS[::-1]}, [1, 2]),
    ],
)
def test_a_level_is_trained_again_when_anything_above_it_changes(changed, again, workshop, tmp_path):
    workshop.levels(tmp_path)
    workshop.trained.clear()
    workshop.levels(tmp_path, **changed)
    assert [place for place, *_ in workshop.trained] == again


def test_a_torn_level_is_trained_again_and_said(workshop, tmp_path, caplog):
    (first, _), path = workshop.levels(tmp_path), None
    path = tmp_path / "levels" / first.name / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    workshop.trained.clear()
    with caplog.at_level(logging.WARNING):
        workshop.levels(tmp_path)
    assert first.name in caplog.text and "trained again" in caplog.text
    assert [place for place, *_ in workshop.trained] == [1]


def test_training_that_is_cut_short_leaves_no_level_behind(workshop, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workshop, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        workshop.levels(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_no_assistants_are_no_levels(workshop, tmp_path):
    assert workshop.levels(tmp_path, []) == []
    assert not list(tmp_path.iterdir())
