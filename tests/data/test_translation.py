"""Back-translation is greedy decoding by two models, which is done here step by step, and of each text by itself."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from fed_distill import seeds
from fed_distill.config import AugmentationConfig
from fed_distill.data.augmentation import augmented
from fed_distill.data.examples import Examples
from fed_distill.data.translation import BackTranslation, Translator, back_translation
from fed_distill.errors import DataError

SPECIAL = ["[PAD]", "[END]", "[UNK]"]
WORDS = ["red", "shoe", "green", "tea", "bag", "polish", "rot", "schuh", "grün", "tee"]
TEXTS = ("red shoe", "green tea bag", "tea", "polish red green shoe", "bag of tea")


def translator(folder, seed):
    """A Marian model of one layer with random weights, large enough to say something of its own about each text."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    special = {"pad_token": "[PAD]", "eos_token": "[END]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=1.0,
        tie_word_embeddings=False,  # else a random model says the same token over and over
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    with seeds.scope(seed, "translator"):
        MarianMTModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return [translator(tmp_path_factory.mktemp(name), seed) for seed, name in enumerate(("there", "back"))]


def greedy(path, text):
    """What the model in ``path`` says of ``text``, a token after another by whole forward passes."""
    network = MarianMTModel.from_pretrained(path).eval()
    ids = [len(SPECIAL) + WORDS.index(word) if word in WORDS else 2 for word in text.split()] + [1]
    said = [0]
    with torch.no_grad():
        while len(said) <= 2 * len(ids) + 10 and (len(said) == 1 or said[-1] != 1):
            logits = network(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([said])).logits[0, -1]
            said.append(int(logits.argmax()))
    return " ".join(WORDS[token - len(SPECIAL)] for token in said if token >= len(SPECIAL))


def test_a_text_is_what_the_models_make_of_it_one_after_the_other(pair):
    made = {text: greedy(pair[1], greedy(pair[0], text)) or text for text in TEXTS}
    assert len(set(made.values())) > 1 and any(made[text] != text for text in TEXTS)
    translation = back_translation(*pair)
    assert {text: translation.reworded(text) for text in TEXTS} == made
    assert {text: translation.reworded(text) for text in reversed(TEXTS)} == made


def test_a_text_is_translated_once_and_kept_where_nothing_comes_back():
    asked = []

    class Silent(Translator):
        def translated(self, text):
            asked.append(text)
            return ""

    silent = Silent(None, None)
    translation = BackTranslation(silent, silent)
    assert [translation.reworded(text) for text in ("a b", "c", "a b")] == ["a b", "c", "a b"]
    assert asked == ["a b", "", "c", ""]


def augmented_texts(texts, seed=0, **config):
    rows = np.arange(len(texts), dtype=np.int64)
    examples = Examples(tuple(texts), tuple(texts), rows % 2, rows, ("shop",) * len(texts))
    changed = augmented(examples, AugmentationConfig(**config), np.random.default_rng(seed))
    return changed.texts, changed.pairs


def test_the_share_of_texts_is_replaced_in_both_columns_by_each_ones_own_draws(pair):
    text = next(text for text in TEXTS if back_translation(*pair).reworded(text) != text)
    other = back_translation(*pair).reworded(text)
    texts, pairs = augmented_texts([text] * 400, translated=0.3, back_translation=pair)
    assert set(texts) == set(pairs) == {text, other}
    assert np.mean([one == other for one in texts + pairs]) == pytest.approx(0.3, abs=0.06)
    assert texts != pairs
    assert (texts, pairs) == augmented_texts([text] * 400, translated=0.3, back_translation=pair)


def test_models_that_are_not_there_are_named(pair, tmp_path):
    with pytest.raises(DataError, match=r"back_translation: cannot load the translation model '.*none'"):
        augmented_texts(["tea"], translated=0.5, back_translation=[pair[0], str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"translated": 0.5}, "require each other"),
        ({"back_translation": ["there", "back"]}, "require each other"),
        ({"translated": 0.5, "back_translation": ["there"]}, "two models, to another language and back"),
    ],
)
def test_half_of_a_setting_is_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        AugmentationConfig(**config)
