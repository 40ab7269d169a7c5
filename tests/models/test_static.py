"""The static student: its start from the teacher by hand and by other libraries, and what it refuses."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fed_distill.errors import ConfigError
from fed_distill.models import build_student, load_model
from fed_distill.models.static import principal_components, sif_weights, zipf

TEXTS = ("red phone mini", "blue shoe pro", "green kettle ultra maxi", "red shoe", "手机")


@pytest.fixture
def teacher(wordpiece_teacher, task):
    return wordpiece_teacher(task)


@pytest.fixture
def pruned(student, task, teacher):
    return student("static", task, teacher, TEXTS, width=8)


def contextual(teacher, tokens):
    """The mean of Hugging Face's own last hidden state for each token alone, between [CLS] and [SEP]."""
    tokenizer = Tokenizer.from_str(teacher.settings["tokenizer"])
    cls, sep = map(tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    ids = torch.tensor([[cls, tokenizer.token_to_id(token), sep] for token in tokens])
    with torch.no_grad():
        return teacher.network.bert(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(dim=1)


def vocabulary(model):
    found = Tokenizer.from_str(model.settings["tokenizer"]).get_vocab()
    return sorted(found, key=found.get)


def test_principal_components_are_those_of_a_singular_value_decomposition():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(30, 6)) @ draw.normal(size=(6, 6)) + 5.0
    fitted = np.arange(30) < 20
    centre = values[:20].mean(axis=0)
    _, _, directions = np.linalg.svd(values[:20] - centre, full_matrices=False)
    expected = (values - centre) @ directions[:3].T
    found = principal_components(values, fitted, 3)
    np.testing.assert_allclose(found * np.sign(found[0]), expected * np.sign(expected[0]))


def test_weights_follow_smooth_inverse_frequency():
    np.testing.assert_allclose(sif_weights(np.array([0.0, 0.001, 0.003, 0.999]), 0.001), [1.0, 0.5, 0.25, 0.001])


def test_probabilities_of_zipfs_law():
    np.testing.assert_allclose(zipf(3), [6 / 11, 3 / 11, 2 / 11])


def similarities(rows):
    """Products of rows, which rotations do not change, in units of their norm."""
    products = rows.double() @ rows.double().T
    return products / products.norm()


def components(states, width):
    """Principal components by a singular value decomposition, ``[tokens, width]``."""
    centred = (states - states.mean(dim=0)).double()
    u, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :width] * scale[:width]


def test_table_has_the_teachers_embeddings_of_single_tokens_weighted_by_frequency(pruned, teacher):
    tokenizer = Tokenizer.from_str(pruned.settings["tokenizer"])
    pieces = [piece for text in TEXTS for piece in tokenizer.encode(text, add_special_tokens=False).tokens]
    used = sorted(set(pieces), key=tokenizer.token_to_id)
    weights = torch.tensor([[1e-2 / (1e-2 + pieces.count(token) / len(pieces))] for token in used])
    table = pruned.bag.table.detach()[[tokenizer.token_to_id(token) for token in used]]
    assert table.std(correction=0).item() == pytest.approx(0.1, rel=1e-5)
    expected = components(contextual(teacher, used), 8) * weights
    torch.testing.assert_close(similarities(table), similarities(expected), rtol=1e-3, atol=1e-6)
    assert not pruned.bag.importance.any()


def test_without_texts_frequencies_follow_zipfs_law(student, task, teacher):
    model = student("static", task, teacher, width=8, vocabulary="all", sif=0.5)
    rows = len(model.bag.table)
    assert rows == teacher.settings["config"]["vocab_size"]
    harmonic = sum(1 / rank for rank in range(1, rows + 1))
    weights = torch.tensor([[0.5 / (0.5 + 1 / rank / harmonic)] for rank in range(1, rows + 1)])
    expected = components(contextual(teacher, vocabulary(model)[1:]), 8) * weights[1:]
    table = model.bag.table.detach()
    assert not table[0].any(), "padding"
    torch.testing.assert_close(similarities(table[1:]), similarities(expected), rtol=1e-3, atol=1e-6)


def test_texts_are_bags_of_their_tokens(pruned, teacher):
    tokenizer = Tokenizer.from_str(pruned.settings["tokenizer"])
    encoded = pruned.encode(["red shoe red", "", "手机 unseen"], ["blue", "mini maxi", ""])
    assert encoded["text_ids"].dtype == torch.int32
    for row, text in enumerate(["red shoe red", "", "手机 unseen"]):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert encoded["text_ids"][row].tolist() == ids + [0] * (encoded["text_ids"].shape[1] - len(ids))
    assert pruned.encode(["red " * 600], None)["text_ids"].shape == (1, 512)
    known = Tokenizer.from_str(teacher.settings["tokenizer"]).encode("red shoe", add_special_tokens=False).tokens
    assert tokenizer.encode("red shoe", add_special_tokens=False).tokens == known


def test_vocabulary_is_cut_to_the_most_frequent_tokens(student, task, teacher):
    sizes = [len(student("static", task, teacher, TEXTS, width=4, vocabulary=count).bag.table) for count in (0, 1, 3)]
    everything = len(student("static", task, teacher, TEXTS, width=4, vocabulary="all").bag.table)
    used = len(student("static", task, teacher, TEXTS, width=4).bag.table)
    assert sizes[0] < sizes[1] < sizes[2] <= used < everything


def test_saved_student_keeps_its_tokenizer_in_a_file(pruned, tmp_path):
    pruned.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    again = load_model(tmp_path / "saved")
    batch = again.encode(TEXTS, TEXTS[::-1])
    torch.testing.assert_close(again(batch).logits, pruned(pruned.encode(TEXTS, TEXTS[::-1])).logits, rtol=0, atol=0)


def test_padding_of_another_id_is_row_0(task, wordpiece_teacher):
    """A tokenizer whose padding is not token 0: both exchange their rows."""
    teacher = wordpiece_teacher(task)
    one = build_student("static", {"width": 8, "vocabulary": "all"}, task, teacher, TEXTS)
    settings = {**one.settings, "pad_id": 7}
    moved = type(one)(**settings)
    first, second = (model.encode(["red 手机 shoe"], None)["text_ids"] for model in (one, moved))
    assert torch.equal(torch.where(first == 7, 0, first), second)


@pytest.mark.parametrize("given", [None, "two-tower"])
def test_a_teacher_without_tokenizer_is_refused(given, student, task):
    teacher = given and student(given, task, rows=20)
    named = "no teacher was given" if given is None else "this TwoTower has no tokenizer"
    with pytest.raises(ConfigError, match=f"'static' requires a pretrained teacher with a tokenizer .*{named}"):
        build_student("static", {}, task, teacher, TEXTS)


def test_a_teacher_of_hashed_pieces_is_refused(student, task):
    hashed = student("bert-mini", task, rows=64, width=16)
    with pytest.raises(ConfigError, match="this Transformer has no tokenizer"):
        build_student("static", {}, task, hashed, TEXTS)


def test_width_is_at_most_that_of_the_teacher(task, teacher):
    with pytest.raises(ConfigError, match=r"width 17 is too large for .* 16 dimensions .*: set width to at most 16"):
        build_student("static", {"width": 17, "vocabulary": "all"}, task, teacher)
