"""What every student keeps to, whatever it is made of."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from fed_distill.models import load_model, predict
from fed_distill.models.base import TextModel

TEXTS = ["apple iphone 12 64gb", "苹果 手机", "", "internationalization of the gtx1080ti", "kaffee"]
PAIRS = ["iphone 12", "apple phone", "y", "word " * 40, ""]
STUDENTS = {
    "two-tower": {"rows": 500, "width": 16, "head_width": 8},
    "static": {"width": 12, "head_width": 8},
    "history-tower": {"rows": 500, "width": 16, "head_width": 8},
    "lstm": {"rows": 500, "width": 16},
    "bert-mini": {"rows": 500, "width": 32},
    "distilbert": {"rows": 500, "width": 32},
    "mobilebert": {"rows": 500, "width": 32},
}
every_student = pytest.mark.parametrize("name", STUDENTS)


def batch_of(model: TextModel, rows=None):
    encoded = model.encode(TEXTS, PAIRS)
    return model.collate(encoded, torch.arange(len(TEXTS)) if rows is None else torch.tensor(rows))


def narrowed_with_batch(model, batch):
    """The model over the touched rows, and the batch renumbered for it by a loop."""
    rows = {}
    renumbered = dict(batch)
    for table, fields in model.tables.items():
        touched = sorted({0}.union(*(batch[field].flatten().tolist() for field in fields)))
        rows[table] = torch.tensor(touched)
        position = {row: index for index, row in enumerate(touched)}
        for field in fields:
            places = [position[row] for row in batch[field].flatten().tolist()]
            renumbered[field] = torch.tensor(places).view(batch[field].shape)
    return model.narrowed(rows), renumbered, rows


@every_student
def test_narrowed_model_computes_the_same_logits_and_gradients(name, student, task):
    model = student(name, task, **STUDENTS[name])
    batch = batch_of(model)
    narrow, renumbered, rows = narrowed_with_batch(model, batch)
    logits, narrow_logits = model(batch).logits, narrow(renumbered).logits
    torch.testing.assert_close(narrow_logits, logits, rtol=0, atol=0)
    logits.square().sum().backward()
    narrow_logits.square().sum().backward()
    gradients = {key: value.grad for key, value in narrow.named_parameters()}
    for key, value in model.named_parameters():
        if key in rows:
            assert len(gradients[key]) == len(rows[key]) < len(value)
            torch.testing.assert_close(gradients[key], value.grad[rows[key]])
            untouched = torch.ones(len(value), dtype=torch.bool)
            untouched[rows[key]] = False
            assert not value.grad[untouched].any()
        elif value.grad is not None:
            torch.testing.assert_close(gradients[key], value.grad)


@every_student
def test_narrowed_model_shares_no_memory_with_the_full_one(name, student, task):
    model = student(name, task, **STUDENTS[name])
    narrow, _, _ = narrowed_with_batch(model, batch_of(model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(1.0)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@every_student
def test_saved_and_loaded_model_gives_equal_outputs(name, student, task, tmp_path):
    model = student(name, task, **STUDENTS[name])
    model.save(tmp_path / "student")
    loaded = load_model(tmp_path / "student")
    assert type(loaded) is type(model) and loaded.kind == model.kind and dict(loaded.tables) == dict(model.tables)
    torch.testing.assert_close(loaded(batch_of(loaded)).logits, model(batch_of(model)).logits, rtol=0, atol=0)
    assert {path.suffix for path in (tmp_path / "student").iterdir()} == {".json", ".safetensors"}


@every_student
def test_an_example_scores_the_same_alone_and_padded_in_a_batch(name, student, task):
    model = student(name, task, **STUDENTS[name])
    together = model(batch_of(model)).logits
    alone = torch.cat([model(batch_of(model, [row])).logits for row in range(len(TEXTS))])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    assert together.shape == (5, 4) and torch.isfinite(together).all()


@pytest.mark.parametrize("name", [name for name in STUDENTS if name != "history-tower"])
def test_single_text_task_has_no_second_text(name, student, single):
    model = student(name, single, **STUDENTS[name])
    encoded = model.encode(TEXTS, None)
    batch = model.collate(encoded, torch.arange(len(TEXTS)))
    narrow, renumbered, _ = narrowed_with_batch(model, batch)
    assert model(batch).logits.shape == (5, 3)
    torch.testing.assert_close(narrow(renumbered).logits, model(batch).logits, rtol=0, atol=0)


@every_student
def test_hidden_states_come_on_request_only(name, student, task):
    model = student(name, task, **STUDENTS[name])
    batch = batch_of(model)
    assert model(batch).hidden is None
    outputs = model(batch, hidden=True)
    assert len(outputs.hidden) >= 2
    assert all(state.dim() == 3 and len(state) == len(TEXTS) for state in outputs.hidden)
    torch.testing.assert_close(outputs.logits, model(batch).logits)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_student
def test_vectorized_gradients_of_examples_equal_those_of_a_loop(name, student, task):
    model = student(name, task, **STUDENTS[name])
    batch = batch_of(model)
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def loss(values, example):
        row = {field: value.unsqueeze(0) for field, value in example.items()}
        return functional_call(model, values, (row,)).logits.square().sum()

    fast = vmap(grad(loss), in_dims=(None, 0))(weights, batch)
    for index in range(len(TEXTS)):
        slow = grad(loss)(weights, {field: value[index] for field, value in batch.items()})
        for key, value in slow.items():
            torch.testing.assert_close(fast[key][index], value, rtol=1e-4, atol=1e-5)


@every_student
def test_fresh_weights_depend_on_the_seed_scope_alone(name, student, task):
    first = student(name, task, **STUDENTS[name])
    torch.rand(3)
    second = student(name, task, **STUDENTS[name])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lstm", "bert-mini", "mobilebert"])
def test_students_that_read_a_pair_as_one_sequence_tell_its_order(name, student, task):
    model = student(name, task, **STUDENTS[name])
    forth = model(model.collate(model.encode(["red shoe"], ["shoe polish"]), torch.tensor([0]))).logits
    back = model(model.collate(model.encode(["shoe polish"], ["red shoe"]), torch.tensor([0]))).logits
    assert not torch.allclose(forth, back, atol=1e-6)


def test_two_tower_compares_texts_symmetrically(student, task):
    model = student("two-tower", task)
    forth = model(model.encode(TEXTS, PAIRS)).logits
    back = model(model.encode(PAIRS, TEXTS)).logits
    torch.testing.assert_close(forth, back)


def test_two_tower_scores_from_vectors_computed_apart(student, task):
    model = student("two-tower", task)
    batch = model.encode(TEXTS, PAIRS)
    catalogue = torch.cat([model.vectors(row.unsqueeze(0)) for row in batch["pair_ids"]])
    scored = model.score(model.vectors(batch["text_ids"]), catalogue)
    torch.testing.assert_close(scored, model(batch).logits)


def test_two_tower_vector_is_the_weighted_mean_of_rows_normalized(student, task):
    model = student("two-tower", task, rows=50, width=8)
    with torch.no_grad():
        model.bag.importance.normal_(generator=torch.Generator().manual_seed(1))
        ids = model.encode(["green tea"], None)["text_ids"]
        rows = [row for row in ids[0].tolist() if row]
        weights = [model.bag.importance[row, 0].exp() for row in rows]
        mean = sum(w * model.bag.table[row] for w, row in zip(weights, rows, strict=True)) / sum(weights)
        torch.testing.assert_close(model.vectors(ids)[0], mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_two_tower_learns_to_compare_words_that_it_never_saw(student, task):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 6)) for _ in range(300)]

    def examples(vocabulary, count):
        texts = [draw.choice(vocabulary, 3, replace=False) for _ in range(count)]
        pairs = [text[:2] if row % 2 else draw.choice(vocabulary, 2) for row, text in enumerate(texts)]
        return model.encode([" ".join(text) for text in texts], [" ".join(pair) for pair in pairs])

    model = student("two-tower", task, rows=4000, width=32)
    encoded, labels = examples(words[:200], 640), torch.arange(640) % 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(2):
        for index in torch.arange(640).split(64):
            loss = torch.nn.functional.cross_entropy(model(model.collate(encoded, index)).logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    predicted = predict(model, examples(words[200:], 200)).argmax(dim=1)
    assert (predicted == torch.arange(200) % 2).float().mean() > 0.9


def test_two_tower_ignores_the_padding_row_even_if_noise_moved_it(student, task):
    model = student("two-tower", task, rows=500)
    batch = model.encode(TEXTS, PAIRS)
    before = model(batch).logits
    with torch.no_grad():
        model.bag.table[0] = 9.0
        model.bag.importance[0] = 9.0
    torch.testing.assert_close(model(batch).logits, before)


def test_lstm_equals_torchs_bidirectional_lstm_over_packed_sequences(student, task):
    model = student("lstm", task, rows=500, width=16)
    batch = batch_of(model)
    both = torch.nn.LSTM(16, 16, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for key, value in model.forwards.state_dict().items():
            both.get_parameter(key).copy_(value)
        for key, value in model.backwards.state_dict().items():
            both.get_parameter(f"{key}_reverse").copy_(value)
    embedded, states = model(batch, hidden=True).hidden
    lengths = (batch["input_ids"] > 0).sum(dim=1)
    packed = torch.nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(both(packed)[0], batch_first=True)
    used = batch["input_ids"] > 0
    torch.testing.assert_close(states[used], expected[used])
