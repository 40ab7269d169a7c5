"""Causal language models as teachers, against plain calls of transformers, one prompt at a time."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from fed_distill import seeds
from fed_distill.config import TeacherConfig
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import ConfigError, ModelError
from fed_distill.models import load_model, load_teacher, predict
from tests.models.causal_folders import ARCHITECTURES, save_causal

PROMPT = "Query: {text}\nProduct: {pair}\nRelevance:"
QUERIES = ["red shoe", "kettle", "phone", "a", "ultra pro maxi mini phone, green {braces}"]
PRODUCTS = ["running shoe in red", "tea pot, blue", "phone case", "b", "lamp"]
ONE_TOKEN = {"exact": " exact", "substitute": " substitute", "complement": " complement", "irrelevant": " irrelevant"}
SEVERAL = {"exact": " exact, exact", "substitute": " exact, lamp", "complement": " substitute", "irrelevant": " no"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("model"), "gpt2")


def teacher(folder, task=RELEVANCE, prompt=PROMPT, max_length=64, **options):
    config = TeacherConfig(model=folder, max_length=max_length, options={"prompt": prompt, **options})
    return load_teacher(config, task).eval()


def slow_scores(folder, prompts, words):
    """Log-probability of each of ``words`` after each prompt, by one plain call for each pair of them, and their
    numbers of tokens."""
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores, counts = torch.zeros(len(prompts), len(words)), torch.zeros(len(words))
    for row, prompt in enumerate(prompts):
        for column, word in enumerate(words):
            start, whole = tokenizer(prompt).input_ids, tokenizer(prompt + word).input_ids
            assert whole[: len(start)] == start
            with torch.no_grad():
                logits = network(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
            counts[column] = len(whole) - len(start)
            scores[row, column] = sum(logits[at - 1, whole[at]] for at in range(len(start), len(whole)))
    return scores, counts


def filled(queries=QUERIES, products=PRODUCTS):
    return [f"Query: {query}\nProduct: {product}\nRelevance:" for query, product in zip(queries, products, strict=True)]


@pytest.mark.parametrize("words", [ONE_TOKEN, SEVERAL])
@pytest.mark.parametrize("normalized", [False, True])
def test_probabilities_are_those_of_the_label_words_after_the_prompt(folder, words, normalized):
    model = teacher(folder, label_words=words, length_normalized=normalized)
    scores, counts = slow_scores(folder, filled(), list(words.values()))
    assert (int(counts.max()) > 1) == (words is SEVERAL)
    expected = scores / counts if normalized else scores
    encoded = model.encode(QUERIES, PRODUCTS)
    with torch.no_grad():
        torch.testing.assert_close(model(encoded).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predict(model, encoded), expected.softmax(dim=-1), rtol=0, atol=1e-5)
    assert float(expected.std(dim=0).min()) > 0.1  # the texts matter


@pytest.mark.parametrize("words", [ONE_TOKEN, SEVERAL])
def test_a_batch_equals_one_by_one_and_padding_has_no_effect(folder, words):
    model = teacher(folder, label_words=words)
    encoded = model.encode(QUERIES, PRODUCTS)
    together = predict(model, encoded)
    alone = [predict(model, model.encode([query], [product])) for query, product in zip(QUERIES, PRODUCTS, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    wider = {"input_ids": torch.nn.functional.pad(encoded["input_ids"], (0, 9))}
    with torch.no_grad():
        torch.testing.assert_close(model(wider).logits.softmax(dim=-1), together, rtol=0, atol=1e-5)


def test_a_model_without_selectable_logits_gives_the_same(gpt2):
    model = teacher(gpt2, label_words=SEVERAL)
    encoded = model.encode(QUERIES, PRODUCTS)
    selected = predict(model, encoded)
    assert model._selects
    model._selects = False
    torch.testing.assert_close(predict(model, encoded), selected, rtol=0, atol=1e-5)


def test_special_tokens_are_put_before_the_prompt_and_not_after_it(tmp_path):
    folder = save_causal(tmp_path, "qwen3", begin="<|begin|>")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = teacher(folder).encode(["red shoe"], ["lamp"])["input_ids"][0] - 1
    whole = tokenizer("Query: red shoe\nProduct: lamp\nRelevance:").input_ids
    assert whole[0] == tokenizer.convert_tokens_to_ids("<|begin|>") and whole[-1] == tokenizer.eos_token_id
    assert ids.tolist() == whole[:-1]


def test_label_words_are_names_of_classes_by_default(gpt2):
    named = teacher(gpt2)
    given = teacher(gpt2, label_words=ONE_TOKEN)
    encoded = named.encode(QUERIES, PRODUCTS)
    assert torch.equal(predict(named, encoded), predict(given, encoded))


def test_a_task_with_one_text_has_a_prompt_with_one(gpt2, single):
    model = teacher(gpt2, single, prompt="{text} is a", label_words={"phone": " phone", "coffee": " coffee"})
    scores, _ = slow_scores(gpt2, [f"{text} is a" for text in QUERIES], [" phone", " coffee", " other"])
    torch.testing.assert_close(predict(model, model.encode(QUERIES, None)), scores.softmax(dim=-1), rtol=0, atol=1e-5)


def test_calibration_divides_by_the_probabilities_of_prompts_without_content(gpt2):
    words = list(ONE_TOKEN.values())
    scores, _ = slow_scores(gpt2, filled(), words)
    free = ["N/A", "[MASK]", ""]
    prior = slow_scores(gpt2, filled(free, free), words)[0].softmax(dim=-1).mean(dim=0)
    divided = scores.softmax(dim=-1) / prior
    model = teacher(gpt2, calibrate=True)
    found = predict(model, model.encode(QUERIES, PRODUCTS))
    torch.testing.assert_close(found, divided / divided.sum(dim=1, keepdim=True), rtol=0, atol=1e-5)


def test_only_texts_are_cut_and_as_little_as_needed(gpt2):
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    query, product = "red shoe " * 20, "tea pot, blue " * 30
    model = teacher(gpt2, max_length=40)
    ids = model.encode([query, "lamp"], [product, "lamp"])["input_ids"]
    told = tokenizer.decode((ids[0][ids[0] > 0] - 1).tolist())
    assert told.startswith("Query: red shoe") and told.endswith("\nRelevance:")
    kept = len(told.split("\n")[0].removeprefix("Query: "))
    assert told == f"Query: {query[:kept]}\nProduct: {product[:kept]}\nRelevance:"
    longer = f"Query: {query[: kept + 1]}\nProduct: {product[: kept + 1]}\nRelevance:"
    assert int((ids[0] > 0).sum()) <= 40 < len(tokenizer(longer).input_ids)
    assert ids[1].tolist()[: int((ids[1] > 0).sum())] == [
        token + 1 for token in tokenizer("Query: lamp\nProduct: lamp\nRelevance:").input_ids
    ]


def test_a_saved_model_is_loaded_with_equal_predictions(folder, tmp_path):
    model = teacher(folder, label_words=SEVERAL, length_normalized=True, calibrate=True)
    model.save(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "model.json",
        "model.safetensors",
        "tokenizer.json",
    }
    again = load_model(tmp_path / "saved")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()} | {"prior"}  # tied weights once
    encoded = model.encode(QUERIES, PRODUCTS)
    assert torch.equal(again.encode(QUERIES, PRODUCTS)["input_ids"], encoded["input_ids"])
    assert torch.equal(predict(again, encoded), predict(model, encoded))


def test_a_copy_shares_no_weights_and_draws_nothing(gpt2):
    model = teacher(gpt2)
    state = torch.get_rng_state()
    copied = copy.deepcopy(model)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        next(iter(copied.parameters())).zero_()
    assert bool(next(iter(model.parameters())).any())


def test_hidden_states_are_those_of_the_prompt(gpt2):
    model = teacher(gpt2, label_words=SEVERAL)
    batch = model.encode(QUERIES, PRODUCTS)
    with torch.no_grad():
        outputs = model(batch, hidden=True)
        ids = model.encode(QUERIES[:1], PRODUCTS[:1])["input_ids"] - 1
        expected = AutoModelForCausalLM.from_pretrained(gpt2).eval()(ids, output_hidden_states=True).hidden_states
    assert len(outputs.hidden) == len(expected) == 3
    for found, layer in zip(outputs.hidden, expected, strict=True):
        torch.testing.assert_close(found[:1, : ids.shape[1]], layer, rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs.used, batch["input_ids"] > 0)


def test_a_training_step_makes_the_label_more_probable(gpt2):
    model = teacher(gpt2, label_words=SEVERAL)
    encoded, labels = model.encode(QUERIES, PRODUCTS), torch.tensor([0, 1, 2, 3, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    with seeds.scope(0, "dropout"):
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(model(encoded).logits, labels)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "Query: {text}"}, r"option prompt must contain \{text\} and \{pair\}"),
        ({"prompt": "{text} {pair} {merchant}"}, r"unknown placeholder \{merchant\}; this task has \{text\} and"),
        ({"prompt": "{text:>9} {pair}"}, r"unknown placeholder \{text\}"),
        ({"prompt": "{text} {pair}", "label_words": {"good": " good"}}, "'good' is no class; relevance has: exact"),
        ({"prompt": "{text} {pair"}, r"option prompt: .*write \{\{ and \}\} for braces"),
        ({"prompt": "{text} {pair} ", "label_words": {"exact": ""}}, "'' has no tokens of its own"),
        ({"label_words": {"exact": " no", "irrelevant": " no"}}, "' no' begin with those of ' no'"),
        ({"label_words": {"exact": " no", "irrelevant": " no match"}}, "' no match' begin with those of ' no'"),
        (
            {"max_length": 10},
            "tokens without its texts, which leaves 0 of 10 for them: shorten the prompt or the label words",
        ),
        ({"prompt": "{text}{pair}"}, "has no tokens without its texts: add words to the prompt"),
        ({"words": {}}, "has no option 'words'; it has: calibrate, download, label_words, length_normalized, prompt"),
    ],
)
def test_an_unusable_option_is_refused(gpt2, changes, message):
    with pytest.raises(ConfigError, match=message):
        teacher(gpt2, **changes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_that_lacks_a_weight_is_refused_rather_than_filled_with_random_ones(tmp_path, architecture):
    folder = save_causal(tmp_path / "model", architecture)
    weights = load_file(f"{folder}/model.safetensors")
    lost = min(name for name in weights if "mlp" in name)
    save_file(
        {name: one for name, one in weights.items() if name != lost}, f"{folder}/model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelError, match=rf"incomplete: {lost} is missing, or of another shape: get the files again"):
        teacher(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_where_one_is_used(tmp_path):
    folder = save_causal(tmp_path / "model", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["kettle"])
    tokenizer.save_pretrained(folder)
    model = teacher(folder)
    assert model.encode(["red shoe"], ["running shoe"])["input_ids"].shape[0] == 1
    with pytest.raises(ModelError, match=r"the tokenizer has a token 36\d, and the model embeddings for 36\d tokens"):
        model.encode(["kettle"], ["tea pot"])


def test_another_kind_of_model_or_custom_code_is_refused(tmp_path, gpt2):
    save_causal(tmp_path / "encoder", "gpt2")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=400, **small)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="contains a BertModel, not a causal language model: remove the option prompt"):
        teacher(str(tmp_path / "encoder"))
    with pytest.raises(ModelError, match=r"cannot load the pretrained model 'nobody/nothing'; .*download = true"):
        teacher("nobody/nothing")
    save_causal(tmp_path / "code", "gpt2")
    described = json.loads((tmp_path / "code" / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(described))
    (tmp_path / "code" / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="cannot load the pretrained model"):
        teacher(str(tmp_path / "code"))
