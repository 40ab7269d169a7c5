"""Predictions of many examples are those of each example alone, and texts that recur are read once."""

import pytest
import torch

from fed_distill.models.prediction import predict, predict_prepared, prepare

QUERIES = ["usb hub", "usb hub", "hdmi cable 2 m", "usb hub", "", "red phone"]
TITLES = ["anker usb c hub", "hdmi cable", "hdmi cable", "anker usb c hub", "anker usb c hub", "mini 手机"]


@pytest.mark.parametrize("batch_size", [1, 4, 256])
@pytest.mark.parametrize("name", ["two-tower", "static", "lstm", "bert-mini"])
def test_predictions_are_those_of_each_example_alone(name, batch_size, task, student):
    model = student(name, task, **({"width": 8} if name == "static" else {}))
    alone = [
        model(model.encode([query], [title])).logits.detach() for query, title in zip(QUERIES, TITLES, strict=True)
    ]
    together = predict(model, model.encode(QUERIES, TITLES), batch_size)
    torch.testing.assert_close(together, torch.softmax(torch.cat(alone), dim=-1), rtol=1e-5, atol=1e-6)


def test_a_text_that_recurs_is_read_once_and_preparation_serves_other_weights(task, student, monkeypatch):
    model, other = student("two-tower", task), student("two-tower", task)
    other.load_state_dict({name: value + 0.25 for name, value in other.state_dict().items()})
    encoded = model.encode(QUERIES, TITLES)
    expected = [torch.softmax(one(encoded).logits.detach(), dim=-1) for one in (model, other)]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    read = []
    compute = type(model).vectors
    monkeypatch.setattr(type(model), "vectors", lambda self, ids: read.append(len(ids)) or compute(self, ids))
    prepared = prepare(model, encoded, batch_size=4)
    for one, probabilities in zip((model, other), expected, strict=True):
        read.clear()
        torch.testing.assert_close(predict_prepared(one, prepared), probabilities)
        assert sum(read) == len(set(QUERIES)) + len(set(TITLES))


@pytest.mark.parametrize("name", ["two-tower", "lstm"])
def test_without_examples_there_are_no_rows(name, task, student):
    model = student(name, task)
    nothing = {name: values[:0] for name, values in model.encode(["a"], ["b"]).items()}
    assert predict(model, nothing).shape == (0, 4)
