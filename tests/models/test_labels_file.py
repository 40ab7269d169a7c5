"""A file of labels as a teacher."""

import json

import numpy as np
import pytest
import torch

from fed_distill.config import TeacherConfig
from fed_distill.data.examples import Examples
from fed_distill.distill.teacher import cached_teacher, check_fine_tuning, is_fine_tuned, teacher_fingerprint
from fed_distill.errors import ConfigError, DataError
from fed_distill.models import load_teacher, predict

ROWS = [
    {"text": "a phone", "phone": 0.8, "coffee": 0.15, "other": 0.05},
    {"text": "beans", "phone": 0.0, "coffee": 1.0, "other": 0.0},
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return TeacherConfig(model="labels-file", options={"path": str(tmp_path / "labels.jsonl")})


def examples(*texts):
    count = len(texts)
    return Examples(texts, None, np.zeros(count, dtype=np.int64), np.arange(count), ("shop",) * count)


def test_probabilities_are_those_of_the_file(config, single):
    teacher = load_teacher(config, single)
    found = predict(teacher, teacher.encode(["beans", "a  phone", "beans"], None))
    expected = torch.tensor([[0, 1, 0], [0.8, 0.15, 0.05], [0, 1, 0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert teacher.covers(["beans", "lamp"], None).tolist() == [True, False]
    assert teacher.parameter_count() == 0


def test_a_text_that_the_file_lacks_has_no_label(config, single):
    with pytest.raises(DataError, match=r"labels.jsonl has no label for 1 of 2 examples, such as 'lamp'"):
        load_teacher(config, single).encode(["beans", "lamp"], None)


def test_it_is_looked_up_and_not_trained_or_stored(config, single, tmp_path):
    assert not is_fine_tuned(config)
    check_fine_tuning(config)
    made_of = config, single, examples("x"), examples("y"), examples("z"), 0
    teacher, name = cached_teacher(tmp_path / "cache", *made_of, lambda *told: pytest.fail("it was trained"))
    assert name == teacher_fingerprint(*made_of) and teacher.history == []
    assert not (tmp_path / "cache").exists()
    for changes in ({"epochs": 3}, {"steps": 5}):
        with pytest.raises(ConfigError, match="labels-file cannot be fine-tuned: remove its epochs and steps"):
            check_fine_tuning(config.model_copy(update=changes))


def test_a_member_with_the_budget_of_the_others_says_so(config):
    together = TeacherConfig(epochs=20, ensemble=[{"model": "labels-file", "options": config.options}])
    with pytest.raises(ConfigError, match="or set epochs = 0 if it has them from"):
        check_fine_tuning(together)
    check_fine_tuning(TeacherConfig(epochs=20, ensemble=[{"model": "labels-file", "options": {}, "epochs": 0}]))


def test_domains_have_nothing_to_train_it_on(config):
    with pytest.raises(ConfigError, match=r"teacher.domains = 2 fine-tunes every teacher .* labels-file is not"):
        check_fine_tuning(config.model_copy(update={"domains": 2}))


def test_its_fingerprint_changes_with_its_content_and_not_with_data_that_it_does_not_read(config, single, tmp_path):
    def name(config=config, public="x", seed=0, task=single):
        return teacher_fingerprint(config, task, examples(public), examples("v"), examples("d"), seed)

    first = name()
    assert first == name(public="other") == name(seed=1) == name(config.model_copy(update={"learning_rate": 1.0}))
    path = tmp_path / "labels.jsonl"
    path.write_text(path.read_text() + json.dumps({**ROWS[0], "text": "lamp"}) + "\n")
    assert name() != first
    second = {**config.options, "labels": {"phone": "phone"}}
    assert name(config.model_copy(update={"options": second})) != name()


def test_options_are_checked(config, single):
    for options, message in (
        ({}, "option path is missing"),
        ({"min_coverage": 1.5}, "option min_coverage must be at most 1"),
        ({"task": "category"}, "has no option 'task'; it has: columns, confidence, labels, min_coverage, path"),
    ):
        own = {**(config.options if options else {}), **options}
        with pytest.raises(ConfigError, match=message):
            load_teacher(config.model_copy(update={"options": own}), single)
