"""Pruning removes the layers and neurons that it says, exactly, and leaves an ordinary Hugging Face network."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from fed_distill import load_student
from fed_distill.data.student_description import StudentDescription
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models.prediction import predict
from fed_distill.models.pruning import (
    NetworkShape,
    drawn_classes,
    neuron_importance,
    prunable,
    pruned,
    pruned_shape,
    shape_of,
)
from fed_distill.models.student_folder import save_student

TEXTS = ["red phone", "blue shoe pro kühl", "green kettle ultra maxi " * 4, "手机"]
PAIRS = ["mini 手机", "maxi red blue shoe", "pro", "ultra red"]
NAMES = ("bert-mini", "distilbert", "mobilebert")


@pytest.fixture
def made(student, task):
    """A function: name, layers -> a student with random weights, biases included."""

    def make(name, layers=5):
        model = student(name, task, rows=64, width=16, layers=layers).eval()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
            model.network.get_input_embeddings().weight[0] = 0.0
        return model

    return make


def encoded(model):
    return model.encode(TEXTS, PAIRS)


def logits(model):
    with torch.no_grad():
        return model(encoded(model)).logits


def body(model):
    return getattr(model.network, model.architecture)


def stack(model):
    """The parent of the layers of a network, which has them in ``layer``."""
    return body(model).transformer if model.architecture == "distilbert" else body(model).encoder


def feed_forward(layer):
    """The first and second matrix of each feed-forward network, in the order of the computation."""
    if hasattr(layer, "ffn") and not isinstance(layer.ffn, nn.ModuleList):
        return [(layer.ffn.lin1, layer.ffn.lin2)]
    return [(one.intermediate.dense, one.output.dense) for one in (*getattr(layer, "ffn", ()), layer)]


@pytest.mark.parametrize(("kept", "which"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 1, 3, 4])])
@pytest.mark.parametrize("name", NAMES)
def test_the_kept_layers_are_evenly_spaced_from_the_first_to_the_last(name, kept, which, made):
    model = made(name)
    small = pruned(model, NetworkShape(kept, shape_of(model).neurons))
    before = logits(model)
    stack(model).layer = nn.ModuleList(stack(model).layer[place] for place in which)
    assert shape_of(small).layers == len(stack(small).layer) == kept
    assert torch.equal(logits(small), logits(model))
    assert not torch.allclose(before, logits(model), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_removing_nothing_is_the_identity_in_a_copy(name, made):
    model = made(name, layers=2)
    same = pruned(model, shape_of(model))
    assert torch.equal(logits(same), logits(model))
    before = logits(model)
    with torch.no_grad():
        for weight in same.parameters():
            weight.zero_()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_that_nothing_depends_on_have_no_importance_and_are_removed_without_a_change(name, made):
    model, draw = made(name, layers=2), torch.Generator().manual_seed(1)
    neurons = shape_of(model).neurons
    useless = []
    with torch.no_grad():
        for layer in stack(model).layer:
            for _, second in feed_forward(layer):
                useless.append(torch.randperm(neurons, generator=draw)[: neurons // 4])
                second.weight[:, useless[-1]] = 0.0
    found = neuron_importance(model, encoded(model), torch.tensor([0, 1, 2, 0]))
    flat = [one for layer in found for one in layer]
    assert len(flat) == len(useless)
    for one, none in zip(flat, useless, strict=True):
        assert bool((one[none] == 0.0).all())
        if name != "mobilebert":  # whose ReLU leaves out neurons that no example activates
            assert int((one == 0.0).sum()) == len(none)
    small = pruned(model, NetworkShape(2, neurons - neurons // 4), found)
    torch.testing.assert_close(logits(small), logits(model), rtol=0, atol=1e-5)
    assert small.parameter_count() < model.parameter_count()


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_neurons_are_removed_together(name, made):
    """A layer's neurons are ranked by its own importance, not by that of the layer in its place."""
    model = made(name)
    neurons = shape_of(model).neurons
    kept = {0: range(0, 4), 2: range(4, 8), 4: range(2, 6)}
    networks = len(feed_forward(stack(model).layer[0]))
    importance = [
        [torch.tensor([float(one in kept.get(layer, ())) for one in range(neurons)]) for _ in range(networks)]
        for layer in range(5)
    ]
    small = pruned(model, NetworkShape(3, 4), importance)
    with torch.no_grad():
        for place, layer in enumerate(stack(model).layer):
            for _, second in feed_forward(layer):
                second.weight *= torch.tensor([float(one in kept.get(place, ())) for one in range(neurons)])
    stack(model).layer = nn.ModuleList(stack(model).layer[place] for place in kept)
    torch.testing.assert_close(logits(small), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_importance_is_the_mean_absolute_gradient_of_a_mask(name, made):
    """A mask on neuron j scales column j of the second matrix W, so that dL/dm_j is the sum over i of W_ij dL/dW_ij,
    here by ordinary gradients of one example at a time."""
    model, classes = made(name, layers=2), torch.tensor([2, 0, 1, 1])
    found = neuron_importance(model, encoded(model), classes)
    total = [[torch.zeros_like(one) for one in layer] for layer in found]
    for place, (text, pair) in enumerate(zip(TEXTS, PAIRS, strict=True)):
        model.zero_grad()
        loss = -torch.log_softmax(model(model.encode([text], [pair])).logits, dim=-1)[0, classes[place]]
        loss.backward()
        for layer, sums in zip(stack(model).layer, total, strict=True):
            for (_, second), one in zip(feed_forward(layer), sums, strict=True):
                one += (second.weight * second.weight.grad).sum(dim=0).abs().double() / len(TEXTS)
    for got, wanted in zip(found, total, strict=True):
        torch.testing.assert_close(list(got), wanted, rtol=1e-3, atol=1e-6)
        assert float(wanted[0].detach().max()) > 1e-3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_importance_does_not_depend_on_batches(made, monkeypatch):
    model, classes = made("bert-mini", layers=1), torch.tensor([2, 0, 1, 1])
    whole = neuron_importance(model, encoded(model), classes)
    monkeypatch.setattr("fed_distill.models.pruning._BATCH", 3)
    torch.testing.assert_close(neuron_importance(model, encoded(model), classes)[0][0], whole[0][0])


def test_classes_are_drawn_from_the_models_probabilities(made):
    model, count = made("bert-mini", layers=1), 4000
    many = model.encode(TEXTS[:1] * count, PAIRS[:1] * count)
    wanted = predict(model, encoded(model))[0].double()
    drawn = drawn_classes(model, many, (0, "drawn"))
    assert torch.equal(drawn, drawn_classes(model, many, (0, "drawn")))
    shares = torch.bincount(drawn, minlength=3).double() / count
    assert float(wanted.min()) > 0.02
    assert bool(((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / count).sqrt()).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_student_is_saved_as_any_other(name, made, task, tmp_path):
    model = made(name, layers=3)
    importance = neuron_importance(model, encoded(model), torch.tensor([0, 1, 2, 0]))
    small = pruned(model, NetworkShape(2, 8), importance)
    save_student(tmp_path, small, StudentDescription(task, 300))
    network, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch, ids = encoded(small), encoded(small)["input_ids"]
    segments = {} if name == "distilbert" else {"token_type_ids": (batch["segments"] - 1).clamp_min(0)}
    with torch.no_grad():
        read = network.eval()(input_ids=ids, attention_mask=(ids > 0).long(), **segments).logits
    torch.testing.assert_close(read, logits(small), rtol=0, atol=1e-5)
    loaded = load_student(tmp_path)
    assert shape_of(loaded.model) == NetworkShape(2, 8)
    wanted = torch.softmax(logits(small), dim=-1).numpy()
    assert abs(loaded.predict(TEXTS, PAIRS) - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("layers", "neurons", "message"),
    [
        (6, None, "--layers 6: the student has 5; choose a number from 1 to 5"),
        (0, None, "--layers 0: the student has 5"),
        (None, 65, "--neurons 65: the student has 64"),
        (None, None, "nothing would be removed from a student of 5 layers of 64 neurons"),
        (5, 64, "nothing would be removed"),
    ],
)
def test_a_number_that_removes_nothing_or_too_much_is_an_error(layers, neurons, message, made):
    with pytest.raises(ConfigError, match=message):
        pruned_shape(made("bert-mini"), layers, neurons)


def test_what_is_not_named_stays(made):
    assert pruned_shape(made("bert-mini"), 2, None) == NetworkShape(2, 64)
    assert pruned_shape(made("bert-mini"), None, 16) == NetworkShape(5, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two-tower", {}, "'two-tower' has no layers to remove"),
        ("lstm", {}, "'lstm' has no layers to remove"),
        ("bert-mini", {"ia3": True, "rows": 64, "width": 16}, "with adapters .* cannot be pruned"),
    ],
)
def test_other_students_cannot_be_pruned(name, options, message, student, task):
    with pytest.raises(ModelError, match=message):
        prunable(student(name, task, **options))
